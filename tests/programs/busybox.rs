//! Every applet of Debian's busybox-static that needs no second process, no network, no root and no
//! hardware, with sensible arguments. A test checks that no applet was forgotten.

use std::process::Command;

use hx_tests::{expected::ExpectedFailures, outcome::Input};
use libtest_mimic::Trial;

use crate::{
    fixture::{self, TEXT},
    host::{Lines, Task, compare},
};

const BUSYBOX: &str = "/bin/busybox";

/// An applet's command lines, one a line; the words are separated by one space, and `␣` stands for a
/// space within a word. `|` at the start gives [`TEXT`] on standard input; `~` compares the lines of
/// the output in any order.
const APPLETS: &[(&str, &str)] = &[
    ("[", "[ -f text ]\n[ 1 -gt 2 ]\n[ a = b ]\n["),
    ("[[", "[[ -d tree ]]\n[[ abc == a* ]]"),
    ("ar", "ar t archive.a\nar -p archive.a object.o"),
    ("arch", "arch"),
    ("ascii", "ascii"),
    ("ash", "ash -c i=0;while␣[␣$i␣-lt␣5␣];do␣i=$((i+1));echo␣$i;done;exit␣3"),
    (
        "awk",
        "awk {s+=$2}END{print␣s,NR} numbers\n|awk {print␣toupper($1),length($0)}\nawk BEGIN{printf␣\"%5.2f|%s\\n\",3.14159,substr(\"hello\",2,3)}",
    ),
    ("base64", "base64 text\n|base64 -w 20"),
    ("basename", "basename /a/b/c.txt .txt"),
    ("bc", "|bc -l\nbc -q"),
    ("bunzip2", "bunzip2 -c text.bz2\nbunzip2 -k words"),
    ("bzcat", "bzcat text.bz2"),
    ("bzip2", "bzip2 -c text\nbzip2 -zk words"),
    ("cal", "cal 2 2024\ncal -y 2023\ncal -j 12 1999"),
    ("cat", "cat text words\ncat -n text\n|cat -A -\ncat none"),
    ("chgrp", "chgrp 5 text"),
    ("chmod", "chmod -v 751 text\nchmod -R go-rwx tree"),
    ("chown", "chown 1:2 text"),
    ("clear", "clear"),
    ("cmp", "cmp text words\ncmp -l text text"),
    ("cp", "cp -a tree copy\ncp text none/x\ncp -v text words tree"),
    ("cpio", "cpio -itv -F archive.cpio\ncpio -idm -F archive.cpio\n|cpio -o -H newc"),
    ("crc32", "crc32 text words"),
    ("cut", "cut -d ␣ -f 2 text\ncut -c 1-3,7- text"),
    ("date", "date -u -d @1700000000\ndate -u -d 2024-02-29 +%j"),
    ("dc", "dc -e 2␣100^p\ndc -e 10k␣2vp"),
    ("dd", "dd if=large bs=100 count=3 skip=2\n|dd bs=4 conv=sync"),
    ("df", "df none"),
    ("diff", "diff text words\ndiff -u text text\ndiff -r tree tree"),
    ("dirname", "dirname /a/b/c"),
    ("dos2unix", "dos2unix dos\n|dos2unix"),
    ("du", "du -a none"),
    ("echo", "echo hello world\necho -n x\necho -e a\\tb"),
    ("ed", "|ed -s text"),
    ("egrep", "egrep -c (fox|dog) text"),
    ("env", "env -i A=1 B=two"),
    ("expand", "expand dos\n|expand -t 4"),
    ("expr", "expr 6 * 7\nexpr abc : a\\(.\\)\nexpr 1 = 2"),
    ("factor", "factor 1234567890 97 18446744073709551557"),
    ("fallocate", "fallocate -l 5000 new"),
    ("false", "false"),
    ("fgrep", "fgrep -n o text"),
    (
        "find",
        "~find tree -type f\n~find tree -name *.txt -size -5\nfind tree -newer text\nfind none",
    ),
    ("fold", "fold -w 10 text\nfold -sw 12 text"),
    ("getopt", "getopt -o ab: -- -a -b value rest\ngetopt -l long: -o x -- --long=v -y"),
    ("grep", "grep -n fox text words\ngrep -ri LEAF tree\ngrep -vc o text\ngrep none text"),
    ("groups", "groups"),
    ("gunzip", "gunzip -c text.gz\ngunzip text.gz\ngunzip text"),
    ("gzip", "gzip -c text\ngzip words\ngzip -d text.gz"),
    ("head", "head -n 2 text\nhead -c 100 large\n|head -n -1"),
    ("hexdump", "hexdump -C text\nhexdump -v -n 50 large\n|hexdump -e 4/1␣\"%02x␣\"␣\"\\n\""),
    ("id", "id -u\nid -un\nid -g"),
    ("ipcalc", "ipcalc -nbmp 192.168.5.77/20"),
    ("link", "link text hard"),
    ("ln", "ln -s text link\nln text hard\nln text words"),
    ("logname", "logname"),
    ("ls", "ls -1\nls -aR tree\nls -l none\nls -F tree\nls --color=always tree"),
    ("lzcat", "lzcat text.lzma"),
    ("lzop", "lzop -c text"),
    ("md5sum", "md5sum text large\n|md5sum\nmd5sum -c text"),
    ("mkdir", "mkdir -p a/b/c\nmkdir tree\nmkdir -m 700 x"),
    ("mkfifo", "mkfifo -m 640 fifo"),
    ("mknod", "mknod fifo p\nmknod null c 1 3"),
    ("mkpasswd", "mkpasswd -m sha512 -S saltsalt password\nmkpasswd -m md5 -S saltsalt password"),
    ("mktemp", "mktemp -p none XXXXXX"),
    ("more", "more text"),
    ("mv", "mv text renamed\nmv -v words tree\nmv none x"),
    ("nl", "nl text\nnl -ba -w 3 text"),
    ("nologin", "nologin"),
    ("nproc", "nproc --ignore=1000"),
    ("od", "od -t x1 text\nod -c -N 40 text\nod -An -td4 -N 32 large"),
    ("paste", "paste words numbers\npaste -s -d , text"),
    ("patch", "patch -i patch\npatch -R -p0 -i patch"),
    ("pidof", "pidof none-such"),
    ("printf", "printf %d-%s-%x\\n 42 text 255\nprintf %5.2f|%e 3.14159 1000000"),
    ("readlink", "readlink none\nreadlink -f /dev/../dev/./null"),
    ("realpath", "realpath /usr/../dev/./null\nrealpath none/x"),
    ("rev", "rev text"),
    ("rm", "rm text\nrm -r tree\nrm none\nrm -f none\nrm tree"),
    ("rmdir", "rmdir tree\nrmdir none"),
    ("rpm2cpio", "rpm2cpio text"),
    ("run-parts", "run-parts --test tree"),
    (
        "sed",
        "sed s/o/0/g text\nsed -n 2,3p text\nsed -i 1d text\nsed -e /fox/a\\added text\n|sed y/abc/xyz/",
    ),
    ("seq", "seq 5\nseq -w 1 0.5 3\nseq 10 -3 1"),
    ("sh", "sh -c echo␣$((1+1))␣${HOME#/};exit␣7\n|sh -n"),
    ("sha1sum", "sha1sum text large"),
    ("sha256sum", "sha256sum text large"),
    ("sha3sum", "sha3sum text\nsha3sum -a 512 large"),
    ("sha512sum", "sha512sum text large"),
    ("shred", "shred -n 1 -z text"),
    ("shuf", "shuf -n 0 text\nshuf -i 5-5"),
    ("sleep", "sleep 0.1\nsleep x"),
    ("sort", "sort words\nsort -nr -k 2 numbers\nsort -u words\n|sort -f\nsort -c text"),
    ("stat", "stat -c %n,%s,%a,%F text words\nstat none"),
    ("strings", "strings binary\nstrings -n 3 -t x binary"),
    ("stty", "stty -a"),
    ("sync", "sync"),
    ("tac", "tac text\n|tac"),
    ("tail", "tail -n 2 text\ntail -c 20 text\ntail -n +3 text\n|tail"),
    ("tar", "tar tvf archive.tar\ntar xf archive.tar\ntar cf new.tar tree"),
    ("tee", "|tee one two\n|tee -a text"),
    ("test", "test -s text\ntest -e none\ntest 3 -lt 4 -a x != y"),
    ("touch", "touch new text\ntouch -d @5 text\ntouch -c none"),
    ("tr", "|tr a-z A-Z\n|tr -d aeiou\n|tr -s o\n|tr -cd a-z"),
    ("true", "true"),
    ("truncate", "truncate -s 5 text\ntruncate -s +1K words"),
    ("tty", "tty\ntty -s"),
    ("uname", "uname -sm"),
    ("uncompress", "uncompress text"),
    ("unexpand", "unexpand -a text"),
    ("uniq", "uniq -c words\nuniq -d words\nuniq -u numbers"),
    ("unix2dos", "unix2dos text\n|unix2dos"),
    ("unlink", "unlink text\nunlink tree"),
    ("unlzma", "unlzma -c text.lzma\nunlzma text"),
    ("unxz", "unxz -c text.xz\nunxz text.xz"),
    ("unzip", "unzip -l archive.zip\nunzip -q archive.zip\nunzip -p archive.zip"),
    ("usleep", "usleep 1000"),
    ("uudecode", "uudecode -o - uuencoded\nuudecode uuencoded"),
    ("uuencode", "uuencode text name\nuuencode -m text name"),
    ("wc", "wc text words\nwc -lwc large\n|wc -m"),
    ("which", "which -a none-such"),
    ("whoami", "whoami"),
    ("xxd", "xxd text\nxxd -p text\nxxd -s 10 -l 20 large"),
    ("xzcat", "xzcat text.xz"),
    ("zcat", "zcat text.gz"),
];

/// Applets that are left out at this stage, by reason.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "starts another program",
        "cttyhack linux32 linux64 nuke resume run-init setsid start-stop-daemon time timeout watch xargs chroot switch_root taskset setpriv ionice nsenter unshare svc svok su sulogin ts",
    ),
    (
        "needs the network",
        "arp arping brctl dnsdomainname dumpleases ftpget ftpput httpd ifconfig ifdown ifup ip ipneigh nameif nc netstat nslookup ping ping6 rdate route ssl_client telnet telnetd tftp traceroute traceroute6 tc tunctl udhcpc udhcpd vconfig wget",
    ),
    (
        "needs root's powers over a machine or its hardware",
        "acpid adjtimex blkdiscard blockdev chvt crond crontab deallocvt depmod devmem dmesg dumpkmap fatattr fdisk findfs freeramdisk fsfreeze fstrim getty halt hwclock i2cdetect i2cdump i2cget i2cset i2ctransfer init insmod kill killall klogd last linuxrc loadfont loadkmap logger login logread losetup lsmod lsscsi mdev microcom mkdosfs mke2fs mkswap modinfo modprobe mount mt openvt partprobe passwd pivot_root poweroff reboot renice rmmod setkeycodes swapoff swapon sysctl syslogd ubirename uevent umount w watchdog who",
    ),
    ("shows what differs between two systems", "free hostid hostname ps pwd uptime top busybox"),
    ("is for a terminal, or never ends", "less reset vi yes"),
    ("works on packages of other systems", "dpkg dpkg-deb rpm mim lzma xz"),
];

pub(crate) fn trials(expected: &ExpectedFailures) -> Result<Vec<Trial>, String> {
    let mut trials = Vec::new();
    for (applet, lines) in APPLETS {
        for (index, line) in lines.split('\n').enumerate() {
            let name = format!("busybox::{applet}::{}", index + 1);
            trials.push(expected.trial(name, move || {
                let (input, line) = match line.strip_prefix('|') {
                    Some(line) => (Input::Bytes(TEXT.into()), line),
                    None => (Input::Null, line),
                };
                let (lines, line) = match line.strip_prefix('~') {
                    Some(line) => (Lines::InAnyOrder, line),
                    None => (Lines::InOrder, line),
                };
                let words = line.split(' ').map(|word| word.replace('␣', " "));
                let mut task = Task::new([BUSYBOX.to_owned()].into_iter().chain(words));
                task.input = input;
                task.lines = lines;
                task.files = Some(fixture::folder()?);
                compare(&task)
            }));
        }
    }
    trials.push(expected.trial("busybox::every-applet".to_owned(), every_applet_is_accounted_for));
    Ok(trials)
}

fn every_applet_is_accounted_for() -> Result<(), String> {
    let list = Command::new(BUSYBOX).arg("--list").output();
    let list = list.map_err(|error| format!("{BUSYBOX}: {error}"))?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let tested = |name: &&str| APPLETS.iter().any(|(applet, _)| applet == name);
    let left_out = |name: &&str| {
        LEFT_OUT.iter().any(|(_, names)| names.split(' ').any(|other| other == *name))
    };
    let forgotten: Vec<_> = list.lines().filter(|name| !tested(name) && !left_out(name)).collect();
    if list.lines().count() < 100 {
        Err(format!("{BUSYBOX} --list says only {list:?}"))
    } else if forgotten.is_empty() {
        Ok(())
    } else {
        Err(format!("neither tested nor left out for a reason: {forgotten:?}"))
    }
}
