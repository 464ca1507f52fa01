//! The test suites of applications, traced: what hx-analyze finds beside all that these make a program do.
//!
//! The suites are those of Debian's source packages, of the versions that are installed. Each starts a script in
//! place of its server, which traces the server.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hx_analyze::trace::calls;

use super::{shell, wait};

/// One suite.
pub(super) struct Suite {
    pub(super) program: &'static str,
    /// Debian's source package, or a folder that has to be there.
    source: &'static str,
    /// What runs it, if it is not among what the other measurements need, and the package that has that.
    needs: Option<(&'static str, &'static str)>,
    /// Runs it in the unpacked source; `$SERVER` is to be run in place of the program.
    script: &'static str,
}

pub(super) const SUITES: &[Suite] = &[
    Suite {
        program: "/usr/bin/redis-server",
        source: "redis",
        needs: Some(("tclsh", "tcl")),
        script: r#"
        mkdir -p src
        for part in cli benchmark check-aof check-rdb sentinel; do
            ln -sf /usr/bin/redis-$part src/redis-$part
        done
        ln -sf "$SERVER" src/redis-server
        for part in unit integration; do
            for test in $(cd tests && find $part -name '*.tcl' | grep -v moduleapi | sort); do
                timeout -k 5 100 ./runtest --single "${test%.tcl}" --tags -needs:debug
            done
        done
        "#,
    },
    Suite {
        program: "/usr/sbin/nginx",
        source: "nginx-tests",
        needs: None,
        // Its modules are packages of their own, which the suite takes to be there.
        script: r#"
        cat >server <<END
#!/bin/sh
[ "\$1" != -V ] || { nginx -V 2>&1 | sed 's/--with-[a-z_0-9]*=dynamic//g'; exit; }
exec "$SERVER" "\$@"
END
        chmod +x server
        TEST_NGINX_BINARY=$PWD/server prove -j2 .
        "#,
    },
    Suite {
        program: "/usr/bin/memcached",
        source: "memcached",
        needs: None,
        // It comes without TLS and seccomp. What tests the suite's own files is left out.
        script: r#"
        gcc -O -w -o timedrun timedrun.c
        ln -sf "$SERVER" memcached-debug
        sed -i 's/ -o relaxed_privileges//' t/lib/MemcachedTest.pm
        prove -j2 $(ls t/*.t | grep -v 'ssl\|whitespace')
        "#,
    },
    Suite {
        program: "/usr/sbin/lighttpd",
        source: "lighttpd",
        needs: None,
        script: r#"
        cd tests
        for kind in fcgi scgi; do gcc -O -w -o $kind-responder $kind-responder.c; done
        export srcdir=$PWD top_builddir=$PWD/.. LIGHTTPD_EXE_PATH="$SERVER"
        sh prepare.sh
        prove -I. *.t
        "#,
    },
    Suite {
        program: "/usr/sbin/haproxy",
        source: "haproxy",
        needs: Some(("varnishtest", "varnish")),
        script: r#"VTEST_PROGRAM=varnishtest HAPROXY_PROGRAM="$SERVER" ./scripts/run-regtests.sh --j 2"#,
    },
];

/// The longest time that a suite takes; what it has made the program do by then counts.
const LIMIT: Duration = Duration::from_secs(900);

/// Calls by which a program becomes another, or is there twice.
const PROCESSES: [&str; 6] = ["execve", "execveat", "clone", "clone3", "fork", "vfork"];

impl Suite {
    /// The calls that the program makes in its suite, besides those that are known already. The sources are in
    /// `folder`, and are fetched if they are missing. `None` where the suite cannot be run, which is said.
    ///
    /// # Errors
    /// Where nothing can be written, or the suite does not start the program.
    pub(super) fn trace(
        &self,
        folder: &Path,
        known: &BTreeSet<String>,
    ) -> Result<Option<BTreeSet<String>>> {
        let Self { program, source, needs, .. } = self;
        if let Some((command, package)) = needs
            && !is_installed(command)
        {
            eprintln!("hx-bench: {program}: its suite needs {command}, of the package {package}");
            return Ok(None);
        }
        let folder = std::path::absolute(folder)?;
        let Some(unpacked) = fetch(&folder, source)? else { return Ok(None) };
        let work = tempfile::tempdir()?;
        let logs = work.path().join("logs");
        fs::create_dir(&logs)?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        let name = Path::new(program).file_name().unwrap_or_default();
        let server = work.path().join(name);
        let untraced: Vec<&str> =
            known.iter().map(String::as_str).filter(|call| !PROCESSES.contains(call)).collect();
        let script = format!(
            "#!/bin/sh\nexec strace -D -f --seccomp-bpf -e 'trace=!{}' -o {}/$$ {program} \"$@\"\n",
            untraced.join(","),
            logs.display()
        );
        fs::write(&server, script)?;
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755))?;
        let mut shell = shell(self.script, work.path())?;
        shell.env("SERVER", &server).current_dir(&unpacked);
        let output = fs::File::create(folder.join(format!("{source}.log")))?;
        shell.stdout(output.try_clone()?).stderr(output);
        wait(&mut shell, LIMIT)?;
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(&logs)? {
            let log = fs::read(entry?.path())?;
            let log = String::from_utf8_lossy(&log);
            seen.extend(calls(&own_lines(&log, name)));
        }
        ensure!(!seen.is_empty(), "{program}: its suite has not started it, see {source}.log");
        seen.extend(known.iter().cloned());
        Ok(Some(seen))
    }
}

fn is_installed(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
}

/// The folder with a source, unpacked.
fn fetch(folder: &Path, source: &str) -> Result<Option<PathBuf>> {
    let unpacked = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
        paths.find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == source
                || name.strip_prefix(source).is_some_and(|rest| rest.starts_with('-'))
                    && !name.ends_with("-tests")
        })
    };
    if let Some(path) = unpacked(folder) {
        return Ok(Some(path));
    }
    if source.ends_with("-tests") {
        let folder = folder.display();
        eprintln!("hx-bench: no {source} in {folder}: a clone of github.com/nginx/nginx-tests");
        return Ok(None);
    }
    eprintln!("hx-bench: fetching the sources of {source}");
    fs::create_dir_all(folder.join("lists"))?;
    let release = fs::read_to_string("/etc/os-release")?;
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.context("/etc/os-release names no VERSION_CODENAME")?;
    let list = folder.join("sources.list");
    let keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(&list, format!("deb-src {keys} http://deb.debian.org/debian {release} main\n"))?;
    for arguments in [&["update"][..], &["source", "--download-only", source]] {
        let mut apt = Command::new("apt-get");
        for (option, value) in [
            ("Dir::Etc::SourceList", list.as_os_str()),
            ("Dir::Etc::SourceParts", OsStr::new("/dev/null")),
            ("Dir::State::lists", folder.join("lists").as_os_str()),
        ] {
            apt.arg("-o").arg([OsStr::new(option), value].join(OsStr::new("=")));
        }
        let done = apt.arg("-qq").args(arguments).current_dir(folder).status()?;
        ensure!(done.success(), "apt-get cannot fetch the sources of {source}");
    }
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let archive = entries.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(&format!("{source}_"))
            && name.contains(".orig.tar.")
            && !name.ends_with(".asc")
    });
    let Some(archive) = archive else { bail!("{source}: Debian's source has no .orig.tar") };
    let done = Command::new("tar").arg("xf").arg(archive).current_dir(folder).status()?;
    ensure!(done.success(), "{source}: tar cannot unpack it");
    Ok(unpacked(folder))
}

/// The lines of a log of `strace -f` that are neither of other programs, which processes have executed, nor the
/// `execve` by which strace starts the program.
pub(super) fn own_lines(log: &str, program: &OsStr) -> String {
    let parts = || log.lines().filter_map(|line| line.split_once(' '));
    let parts = || parts().map(|(process, rest)| (process, rest.trim_start()));
    let mut parents: HashMap<&str, &str> = HashMap::new();
    for (process, rest) in parts() {
        let is_fork = ["clone", "fork", "vfork", "<... clone", "<... fork", "<... vfork"];
        if is_fork.iter().any(|call| rest.starts_with(call))
            && let Some((_, child)) = rest.rsplit_once(" = ")
        {
            parents.insert(child, process);
        }
    }
    let mut others: HashSet<&str> = HashSet::new();
    let mut known: HashSet<&str> = HashSet::new();
    let mut executed: HashMap<&str, &str> = HashMap::new();
    let mut own = String::new();
    for (process, rest) in parts() {
        if known.insert(process) {
            match parents.get(process) {
                Some(parent) if others.contains(parent) => _ = others.insert(process),
                None if rest.starts_with("execve(") => continue,
                _ => {}
            }
        }
        let is_other = others.contains(process);
        if let Some(arguments) = rest.strip_prefix("execve(") {
            executed.insert(process, arguments.split('"').nth(1).unwrap_or_default());
        }
        if (rest.starts_with("execve(") || rest.starts_with("<... execve resumed"))
            && rest.ends_with(" = 0")
            && let Some(path) = executed.remove(process)
        {
            if Path::new(path).file_name() == Some(program) {
                others.remove(process);
            } else {
                others.insert(process);
            }
        }
        if !is_other {
            own.push_str(rest);
            own.push('\n');
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_do_does_not_count() {
        let log = r#"10 execve("/usr/sbin/server", ["server"], 0x1) = 0
10 socket(AF_INET, SOCK_STREAM, 0) = 3
10 vfork( <unfinished ...>
11  dup2(3, 0) = 0
11  execve("/bin/sh", ["sh"], 0x1 <unfinished ...>
10 <... vfork resumed>) = 11
11  <... execve resumed>) = 0
11  getppid() = 10
11  clone(child_stack=NULL, flags=SIGCHLD) = 12
12  getuid() = 0
12  execve("/usr/sbin/server", ["server"], 0x1) = 0
12  listen(3, 5) = 0
12  execve("/bin/none", ["none"], 0x1) = -1 ENOENT (No such file or directory)
12  accept(3, NULL, NULL) = 4
"#;
        let seen = calls(&own_lines(log, OsStr::new("server")));
        let expected = ["accept", "dup2", "execve", "listen", "socket", "vfork"];
        assert_eq!(seen, expected.map(str::to_owned).into());
    }
}
