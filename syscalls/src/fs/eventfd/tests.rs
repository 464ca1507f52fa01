use super::*;
use crate::{
    testing::{TestProcess, start},
    user::KernelBuffer,
    wait::PollTable,
};

fn io(process: &TestProcess) -> Io<'_> {
    Io { thread: &process.thread, flags: linux::O_NONBLOCK }
}

fn read(process: &TestProcess, file: &EventFd) -> Result<u64, Errno> {
    let mut to = KernelBuffer::new(8);
    file.read(io(process), &mut to, 0)?;
    Ok(u64::decode(&to.bytes))
}

fn write(process: &TestProcess, file: &EventFd, value: u64) -> Result<usize, Errno> {
    file.write(io(process), &mut &value.to_ne_bytes()[..], 0)
}

#[test]
fn a_counter_is_read_as_a_whole_a_semaphore_by_ones() {
    let process = TestProcess::new();
    let counter = EventFd::new(3, Mode::Counter);
    assert_eq!(write(&process, &counter, 4), Ok(8));
    assert_eq!(read(&process, &counter), Ok(7));
    assert_eq!(read(&process, &counter), Err(Errno::EAGAIN));
    let semaphore = EventFd::new(2, Mode::Semaphore);
    assert_eq!(read(&process, &semaphore), Ok(1));
    assert_eq!(read(&process, &semaphore), Ok(1));
    assert_eq!(read(&process, &semaphore), Err(Errno::EAGAIN));
}

#[test]
fn the_limits_of_the_counter() {
    let process = TestProcess::new();
    let file = EventFd::new(0, Mode::Counter);
    let poll = || file.poll(&mut PollTable::query());
    assert_eq!(poll(), PollEvents::OUT);
    assert_eq!(write(&process, &file, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(write(&process, &file, u64::MAX - 1), Ok(8));
    assert_eq!(poll(), PollEvents::IN);
    assert_eq!(write(&process, &file, 1), Err(Errno::EAGAIN));
    assert_eq!(write(&process, &file, 0), Ok(8));
    file.signal(5);
    assert_eq!(poll(), PollEvents::IN | PollEvents::ERR);
    assert_eq!(read(&process, &file), Ok(u64::MAX));
    let mut short = KernelBuffer::new(7);
    assert_eq!(file.read(io(&process), &mut short, 0), Err(Errno::EINVAL));
    assert_eq!(file.write(io(&process), &mut &[0u8; 7][..], 0), Err(Errno::EINVAL));
}

#[test]
fn a_reader_waits_for_a_writer() {
    let process = TestProcess::new();
    let file = EventFd::new(0, Mode::Counter);
    let other = file.clone();
    let app = process.other_thread();
    let reader = start(move || {
        let mut to = KernelBuffer::new(8);
        other.read(Io { thread: &app, flags: 0 }, &mut to, 0).map(|_| u64::decode(&to.bytes))
    });
    assert_eq!(write(&process, &file, 9), Ok(8));
    assert_eq!(reader.join().unwrap(), Ok(9));
}

#[test]
fn the_call_checks_its_flags() {
    let process = TestProcess::new();
    assert_eq!(process.call(linux::__NR_eventfd2, &[0, 4]), Err(Errno::EINVAL));
    let flags = linux::EFD_NONBLOCK | linux::EFD_CLOEXEC | linux::EFD_SEMAPHORE;
    assert_eq!(process.call(linux::__NR_eventfd2, &[7, flags.into()]), Ok(0));
    let description = process.thread.files().get(0).unwrap();
    assert_eq!(description.flags(), linux::O_RDWR | linux::O_NONBLOCK);
    let file = description.file.as_any().downcast_ref::<EventFd>().unwrap();
    assert_eq!(file.state(), (7, Mode::Semaphore));
}
