//! How often the virtual CPUs left the guest, as KVM counts it (`--stats`).
//!
//! QEMU is asked over its control socket (QMP: `docs/interop/qmp-spec.txt` in QEMU's sources) for what
//! `query-stats` has (QEMU 7.1). That must be while it still exists, so a machine whose exits are counted has
//! no `isa-debug-exit`: the kernel's end is then a reset, at which QEMU pauses until this ends it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};

use serde_json::Value;

/// QEMU's arguments for a machine whose exits are counted; `fd` is its end of the control socket.
pub(crate) fn arguments(fd: i32) -> [String; 6] {
    [
        "-action".into(),
        "shutdown=pause".into(),
        "-chardev".into(),
        format!("socket,id=control,fd={fd}"),
        "-mon".into(),
        "chardev=control,mode=control".into(),
    ]
}

/// Waits for the guest's end, and has the counters then.
#[derive(Debug)]
pub(crate) struct ExitCounter(JoinHandle<io::Result<BTreeMap<String, u64>>>);

impl ExitCounter {
    /// Listens to QEMU.
    ///
    /// # Errors
    /// Where there is no thread for that.
    pub(crate) fn start(control: UnixStream) -> io::Result<Self> {
        let thread = thread::Builder::new().name("exits".into());
        Ok(Self(thread.spawn(move || converse(&control))?))
    }

    /// The counters: their names in `--stats`, and values summed over the virtual CPUs. QEMU must have
    /// ended.
    ///
    /// # Errors
    /// Where QEMU ended before it was asked, or gave none.
    pub(crate) fn finish(self) -> io::Result<BTreeMap<String, u64>> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the thread has failed")))
    }
}

/// Waits until the guest has ended, asks, and has QEMU end.
fn converse(control: &UnixStream) -> io::Result<BTreeMap<String, u64>> {
    let mut lines = BufReader::new(control).lines();
    let mut next = || -> io::Result<Value> {
        let line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        serde_json::from_str(&line).map_err(Into::into)
    };
    let say = |text: &str| writeln!(&mut &*control, "{text}");
    say(r#"{"execute": "qmp_capabilities"}"#)?;
    while next()?["event"] != "SHUTDOWN" {}
    say(r#"{"execute": "query-stats", "arguments": {"target": "vcpu"}}"#)?;
    let counters = loop {
        let message = next()?;
        if let Some(why) = message["error"]["desc"].as_str() {
            break Err(io::Error::other(why.to_owned()));
        }
        if message["return"].is_array() {
            break Ok(exits(&message["return"]));
        }
    };
    say(r#"{"execute": "quit"}"#)?;
    counters
}

/// The exits in what `query-stats` gave: all of them, and those kinds that there were.
fn exits(cpus: &Value) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let providers = cpus.as_array().into_iter().flatten();
    for counter in providers.filter_map(|provider| provider["stats"].as_array()).flatten() {
        let (Some(name), Some(value)) = (counter["name"].as_str(), counter["value"].as_u64())
        else {
            continue;
        };
        let is_wanted = name == "exits" || (name.ends_with("_exits") && value > 0);
        if is_wanted {
            *all.entry(format!("KVM: {}", name.replace('_', " "))).or_default() += value;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a QEMU would say, line by line, and what it was asked meanwhile.
    fn talk(lines: &[&str]) -> (io::Result<BTreeMap<String, u64>>, String) {
        let (near, far) = UnixStream::pair().unwrap();
        let counter = ExitCounter::start(near).unwrap();
        for line in lines {
            writeln!(&mut &far, "{line}").unwrap();
        }
        far.shutdown(std::net::Shutdown::Write).unwrap();
        let counters = counter.finish();
        (counters, io::read_to_string(far).unwrap())
    }

    const BEGIN: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;
    const DONE: &str = r#"{"return": {}}"#;
    const END: &str = r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;

    #[test]
    fn exits_of_all_processors_are_summed() {
        let stats = r#"{"return": [
            {"provider": "kvm", "stats": [{"name": "exits", "value": 40}, {"name": "io_exits", "value": 3},
             {"name": "halt_exits", "value": 0}, {"name": "pf_taken", "value": 9}]},
            {"provider": "kvm", "stats": [{"name": "exits", "value": 2}, {"name": "poll_ns", "value": [1, 2]}]}
        ]}"#
        .replace('\n', " ");
        let (counters, asked) = talk(&[BEGIN, DONE, END, r#"{"event": "STOP"}"#, &stats]);
        let counters: Vec<_> = counters.unwrap().into_iter().collect();
        assert_eq!(counters, [("KVM: exits".to_owned(), 42), ("KVM: io exits".to_owned(), 3)]);
        let asked: Vec<&str> = asked.lines().collect();
        assert_eq!(asked.len(), 3);
        assert!(asked[1].contains("query-stats") && asked[2].contains("quit"), "{asked:?}");
    }

    #[test]
    fn a_qemu_that_knows_no_counters_is_ended_all_the_same() {
        let error = r#"{"error": {"class": "CommandNotFound", "desc": "not found"}}"#;
        let (counters, asked) = talk(&[BEGIN, DONE, END, error]);
        assert_eq!(counters.unwrap_err().to_string(), "not found");
        assert!(asked.contains("quit"));
    }

    #[test]
    fn a_qemu_that_ends_early_is_an_error() {
        let (counters, _) = talk(&[BEGIN, DONE]);
        assert_eq!(counters.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
