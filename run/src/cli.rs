//! The command line. Names are those that users of `docker run`, QEMU and uhyve know.
//!
//! Every option can also be given by the environment variable that the help names, or in
//! `hermit.toml` (see [`crate::settings`]); the command line wins over the environment, the
//! environment over the file. Options end at the program; what follows is the program's.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Parser, ValueEnum, builder::FalseyValueParser};
use serde::Deserialize;

/// What makes the virtual CPU run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    /// KVM where it really works, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// Emulation by QEMU
    Tcg,
}

/// Run an unmodified Linux program as a virtual machine of its own.
///
/// The program sees a file system that holds itself, its interpreter, its libraries and the files
/// of the Debian packages that they belong to, or what --rootfs names; nothing else of the host
/// unless -v shares it. It runs as root in `/`, with PATH, HOME, HOSTNAME and (on a terminal) TERM.
/// hermit-run exits with the program's status, 128+N where signal N ended it, 125 where hermit-run
/// itself failed, 126 where the program cannot be executed, 127 where it was not found.
#[derive(Debug, Default, Parser)]
#[command(name = "hermit-run", version, max_term_width = 100, next_line_help = false)]
#[command(override_usage = "hermit-run [OPTIONS] PROGRAM [ARGUMENT]...")]
pub(crate) struct Options {
    /// Memory for kernel and program, with K, M or G (M where none is given) [default: 512M]
    #[arg(short, long, value_name = "SIZE", env = "HERMIX_MEMORY", help_heading = "Machine")]
    pub(crate) memory: Option<String>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N", env = "HERMIX_CPUS", help_heading = "Machine")]
    pub(crate) cpus: Option<u32>,

    /// What makes the virtual CPU run [default: auto]
    #[arg(long, value_enum, value_name = "ACCEL", env = "HERMIX_ACCEL", help_heading = "Machine")]
    pub(crate) accel: Option<Accel>,

    /// Let address spaces keep their translations while others run, where the virtual CPU has PCIDs
    #[arg(long, env = "HERMIX_PCID", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Machine")]
    pub(crate) pcid: bool,

    /// The guest kernel [default: hx-kernel beside hermit-run, or the workspace's]
    #[arg(long, value_name = "FILE", env = "HERMIX_KERNEL", help_heading = "Machine")]
    pub(crate) kernel: Option<PathBuf>,

    /// Run on a kernel that has only the system calls which the program can reach, or which FILE
    /// lists (hx-analyze -o FILE writes one). It is built the first time
    #[arg(long, alias = "specialize", value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "auto", env = "HERMIX_SPECIALISE", help_heading = "Machine")]
    pub(crate) specialise: Option<PathBuf>,

    /// The QEMU command [default: qemu-system-x86_64]
    #[arg(long, value_name = "FILE", env = "HERMIX_QEMU", help_heading = "Machine")]
    pub(crate) qemu: Option<PathBuf>,

    /// Publish a port of the guest, [IP:]HOST:GUEST[/udp], or GUEST alone at any free port of the
    /// host; ranges as in docker run [env: HERMIX_PUBLISH, one a line]
    #[arg(short, long, value_name = "PORTS", action = ArgAction::Append, help_heading = "Network")]
    pub(crate) publish: Vec<String>,

    /// What the network card is connected to: user, tap:INTERFACE[,vhost=on] or none [default: user]
    #[arg(long, value_name = "NET", env = "HERMIX_NET", help_heading = "Network")]
    pub(crate) net: Option<String>,

    /// Address of the guest [default: 10.0.2.15/24]
    #[arg(long, value_name = "ADDRESS/LENGTH[,GATEWAY]", env = "HERMIX_IP")]
    #[arg(help_heading = "Network")]
    pub(crate) ip: Option<String>,

    /// Hardware address of the guest's network card
    #[arg(long, value_name = "MAC", env = "HERMIX_MAC", help_heading = "Network")]
    pub(crate) mac: Option<String>,

    /// A name server for the guest [default: through the host] [env: HERMIX_DNS, one a line]
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append, help_heading = "Network")]
    pub(crate) dns: Vec<String>,

    /// Write the guest's packets to FILE, which tcpdump and wireshark read
    #[arg(long, value_name = "FILE", env = "HERMIX_PCAP", help_heading = "Network")]
    pub(crate) pcap: Option<PathBuf>,

    /// Set a variable; NAME alone takes the host's value [env: HERMIX_ENV, one a line]
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    #[arg(help_heading = "Program")]
    pub(crate) env: Vec<OsString>,

    /// Read variables from a file: NAME=VALUE or NAME a line, # starts a comment
    #[arg(long, value_name = "FILE", action = ArgAction::Append, env = "HERMIX_ENV_FILE")]
    #[arg(help_heading = "Program")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Working directory [default: /]
    #[arg(short, long, value_name = "DIR", env = "HERMIX_WORKDIR", help_heading = "Program")]
    pub(crate) workdir: Option<PathBuf>,

    /// Run as this user, by number or by a name in the image's /etc/passwd [default: 0:0]
    #[arg(short, long, value_name = "USER[:GROUP]", env = "HERMIX_USER", help_heading = "Program")]
    pub(crate) user: Option<String>,

    /// Host name [default: hermix]
    #[arg(long, value_name = "NAME", env = "HERMIX_HOSTNAME", help_heading = "Program")]
    pub(crate) hostname: Option<String>,

    /// Start a small program first that forwards signals to PROGRAM and reaps processes, as docker
    /// run --init does
    #[arg(long, env = "HERMIX_INIT", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Program")]
    pub(crate) init: bool,

    /// Copy a file or directory of the host into the guest [env: HERMIX_VOLUME, one a line]
    #[arg(short, long, value_name = "HOST:GUEST[:ro]", action = ArgAction::Append)]
    #[arg(help_heading = "Files")]
    pub(crate) volume: Vec<OsString>,

    /// Root file system: a directory or a newc cpio archive
    #[arg(long, value_name = "DIR|CPIO", env = "HERMIX_ROOTFS", help_heading = "Files")]
    pub(crate) rootfs: Option<PathBuf>,

    /// Add a Debian package that is installed on the host, with what it depends on
    /// [env: HERMIX_PACKAGE, one a line]
    #[arg(long, value_name = "NAME", action = ArgAction::Append, help_heading = "Files")]
    pub(crate) package: Vec<String>,

    /// Do not add the packages that the program and its libraries belong to
    #[arg(long, env = "HERMIX_NO_PACKAGES", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Files")]
    pub(crate) no_packages: bool,

    /// Build the image anew and do not keep it
    #[arg(long, env = "HERMIX_NO_CACHE", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Files")]
    pub(crate) no_cache: bool,

    /// Show every system call, on standard error or in FILE
    #[arg(long, value_name = "FILE", env = "HERMIX_STRACE", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "-", help_heading = "Observing")]
    pub(crate) strace: Option<PathBuf>,

    /// Write the kernel's messages to FILE, or to standard error for -
    #[arg(long, value_name = "FILE", env = "HERMIX_KERNEL_LOG", help_heading = "Observing")]
    pub(crate) kernel_log: Option<PathBuf>,

    /// Which of them: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "HERMIX_LOG_LEVEL", help_heading = "Observing")]
    pub(crate) log_level: Option<String>,

    /// Write a core file to FILE when a signal that dumps core ends a process; %p in the name
    /// stands for the process id in the guest
    #[arg(long, value_name = "FILE", env = "HERMIX_CORE", help_heading = "Observing")]
    pub(crate) core: Option<PathBuf>,

    /// Sample where the program and the kernel spend their time, and write a flame graph to FILE; folded
    /// stacks where its name ends in .folded, the text of perf script where it ends in .perf
    #[arg(long, value_name = "FILE", action = ArgAction::Append, env = "HERMIX_PROFILE")]
    #[arg(help_heading = "Observing")]
    pub(crate) profile: Vec<PathBuf>,

    /// Write a chart (SVG) to FILE of where the time goes from start to end, and the instructions of the
    /// guest's start
    #[arg(long, value_name = "FILE", env = "HERMIX_BOOT_CHART", help_heading = "Observing")]
    pub(crate) boot_chart: Option<PathBuf>,

    /// Print counters at the end; with KVM also how often the virtual CPUs left the guest
    #[arg(long, env = "HERMIX_STATS", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) stats: bool,

    /// List the files that the program looked for and did not find
    #[arg(long, env = "HERMIX_MISSING_FILES", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) missing_files: bool,

    /// Write the result as JSON to FILE (/dev/fd/N for an open descriptor)
    #[arg(long, value_name = "FILE", env = "HERMIX_JSON", help_heading = "Observing")]
    pub(crate) json: Option<PathBuf>,

    /// Print the QEMU command line and do not run it
    #[arg(long, env = "HERMIX_DRY_RUN", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) dry_run: bool,

    /// Say nothing but errors
    #[arg(short, long, env = "HERMIX_QUIET", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) quiet: bool,

    /// Say what is being done
    #[arg(long, env = "HERMIX_VERBOSE", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) verbose: bool,

    /// Lay out the address space the same way every time
    #[arg(long, env = "HERMIX_NO_ASLR", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Kernel")]
    pub(crate) no_aslr: bool,

    /// Leave the program's syscall instructions as they are
    #[arg(long, env = "HERMIX_NO_REWRITE", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Kernel")]
    pub(crate) no_rewrite: bool,

    /// Settings file [default: hermit.toml in the current directory, where there is one]
    #[arg(long, value_name = "FILE", env = "HERMIX_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Say which system call sites of each file were rewritten, and which way the calls took, on
    /// standard error or in FILE
    #[arg(long, value_name = "FILE", env = "HERMIX_REWRITE_REPORT", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "-", help_heading = "Observing")]
    pub(crate) rewrite_report: Option<PathBuf>,

    /// Write where the stubs of rewritten sites are, for a debugger, to FILE
    #[arg(long, value_name = "FILE", env = "HERMIX_REWRITE_MAP", help_heading = "Observing")]
    pub(crate) rewrite_map: Option<PathBuf>,

    /// Make each rewritten call that changes nothing a second time by its syscall instruction, and
    /// say where the two differ (slow)
    #[arg(long, env = "HERMIX_REWRITE_CHECK", value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Observing")]
    pub(crate) rewrite_check: bool,

    /// Say how often each system call was made and how long it took, beside those that the program can
    /// reach, on standard error or in FILE
    #[arg(long, value_name = "FILE", env = "HERMIX_SYSCALL_SUMMARY", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "-", help_heading = "Observing")]
    pub(crate) syscall_summary: Option<PathBuf>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM", hide = true)]
    pub(crate) command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(["hermit-run"].iter().chain(words))
    }

    #[test]
    fn the_definition_is_sound() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn options_end_at_the_program() {
        let options = parse(&["-m", "64M", "ls", "-m", "--help", "--", "-x"]).unwrap();
        assert_eq!(options.memory.as_deref(), Some("64M"));
        assert_eq!(options.command, ["ls", "-m", "--help", "--", "-x"]);
        let options = parse(&["--", "-odd", "--", "x"]).unwrap();
        assert_eq!(options.command, ["-odd", "--", "x"]);
        assert!(parse(&["--no-such-option", "ls"]).is_err());
        assert!(parse(&["-m", "64M"]).is_err());
    }

    #[test]
    fn a_value_of_strace_is_optional() {
        let options = parse(&["--strace", "ls"]).unwrap();
        assert_eq!(options.strace, Some(PathBuf::from("-")));
        assert_eq!(options.command, ["ls"]);
        assert_eq!(parse(&["--strace=f", "ls"]).unwrap().strace, Some(PathBuf::from("f")));
    }

    #[test]
    fn lists_add_up() {
        let options = parse(&["-e", "A=1", "-e", "B", "-v", "/a:/b", "-v", "/c:/d:ro", "ls"]);
        let options = options.unwrap();
        assert_eq!(options.env, ["A=1", "B"]);
        assert_eq!(options.volume, ["/a:/b", "/c:/d:ro"]);
    }
}
