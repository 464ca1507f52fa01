//! Building the kernel for `x86_64-unknown-none`.
//!
//! Two compilers can: rustup's, where the target can be added to its toolchain, and Debian's
//! `rustc-web`, which builds `core` and `alloc` from `rust-web-src`. The choice is made once and
//! remembered in `target/kernel/toolchain`; `HERMIX_KERNEL_TOOLCHAIN` (`rustup` or `debian`)
//! overrides it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use hx_linker::Selection;

use crate::{repository, run};

const TARGET: &str = "x86_64-unknown-none";
/// Where the full kernel is built.
const TARGET_DIR: &str = "target/kernel";

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Who compiles the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    /// The toolchain of `rust-toolchain.toml` with its precompiled `core`.
    Rustup,
    /// `/usr/bin/cargo`, with `core` built from source.
    Debian,
}

impl Toolchain {
    fn name(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::Debian => "debian",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Rustup, Self::Debian].into_iter().find(|toolchain| toolchain.name() == name.trim())
    }

    /// The remembered choice, or a new one.
    fn choose() -> Result<Self> {
        if let Ok(name) = env::var("HERMIX_KERNEL_TOOLCHAIN") {
            return Self::from_name(&name).with_context(|| {
                format!("HERMIX_KERNEL_TOOLCHAIN is {name:?}: say rustup or debian")
            });
        }
        let memo = repository().join("target/kernel/toolchain");
        if let Some(chosen) = fs::read_to_string(&memo).ok().as_deref().and_then(Self::from_name) {
            return Ok(chosen);
        }
        let chosen = if rustup_has_target() {
            Self::Rustup
        } else {
            run(Command::new(repository().join("scripts/lib/apt-install")).args(DEBIAN_PACKAGES))?;
            Self::Debian
        };
        fs::create_dir_all(repository().join("target/kernel"))?;
        fs::write(&memo, chosen.name()).with_context(|| format!("cannot write {memo:?}"))?;
        Ok(chosen)
    }

    /// Whether it can compile `core` and `alloc` from source, fetching that if rustup can.
    fn has_source(self) -> bool {
        if self == Self::Debian {
            return true;
        }
        let is_there = || {
            here(Command::new("rustc").args(["--print", "sysroot"]))
                .and_then(|output| String::from_utf8(output.stdout).ok())
                .is_some_and(|root| {
                    Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
                })
        };
        if !is_there() {
            here(Command::new("timeout").args(["60", "rustup", "component", "add", "rust-src"]));
        }
        is_there()
    }

    /// `cargo SUBCOMMAND` for the kernel, without a folder for its products.
    fn cargo(self, subcommand: &str, profile: &str, panics: Panics) -> Command {
        let mut cargo = match self {
            Self::Rustup => Command::new("cargo"),
            Self::Debian => {
                let mut cargo = Command::new("/usr/bin/cargo");
                // What rustup's proxy sets for its own compiler.
                for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "LD_LIBRARY_PATH"] {
                    cargo.env_remove(variable);
                }
                cargo.env("RUSTC", "/usr/bin/rustc");
                cargo
            }
        };
        cargo.arg(subcommand);
        if self == Self::Debian || panics == Panics::Trap {
            cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=core,alloc");
            cargo.arg(match panics {
                Panics::Handled => "-Zbuild-std-features=compiler-builtins-mem",
                Panics::Trap => "-Zbuild-std-features=compiler-builtins-mem,optimize_for_size",
            });
        }
        cargo
            .args(["--quiet", "--locked", "--package", "hx-kernel", "--profile", profile])
            .args(["--target", TARGET])
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(profile, panics).join("\x1f"))
            .env_remove("RUSTFLAGS")
            .current_dir(repository());
        cargo
    }
}

/// What a panic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panics {
    /// It calls the panic handler.
    Handled,
    /// It executes an invalid instruction: `core` is compiled so too, which takes its source.
    Trap,
}

/// What a command says in the repository; nothing where it cannot be started.
fn here(command: &mut Command) -> Option<Output> {
    command.current_dir(repository()).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
}

/// Whether the compiler in use here has the kernel's target, fetching it if rustup can.
fn rustup_has_target() -> bool {
    // An unreachable network must not hold up the fallback for long.
    here(Command::new("timeout").args(["120", "rustup", "target", "add", TARGET]));
    here(Command::new("rustc").args(["--target", TARGET, "--print", "target-libdir"]))
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .is_some_and(|libdir| Path::new(libdir.trim()).is_dir())
}

/// The kernel's code generation and link options: everything that is not in `Cargo.toml`.
fn rustflags(profile: &str, panics: Panics) -> Vec<String> {
    let mut flags = vec![
        "-Clinker=ld".to_owned(),
        "-Clinker-flavor=ld".to_owned(),
        // The kernel is linked where it runs, in the top 2 GiB.
        "-Crelocation-model=static".to_owned(),
        "-Ccode-model=kernel".to_owned(),
        // Backtraces walk the frame pointers.
        "-Cforce-frame-pointers=yes".to_owned(),
        // The other implementations use vector instructions.
        "--cfg=chacha20_backend=\"soft\"".to_owned(),
    ];
    if profile == "kernel-parts" {
        // One copy of instructions that occur again and again: 10 KB of 400.
        flags.push("-Cllvm-args=-enable-machine-outliner=always".to_owned());
    }
    if panics == Panics::Trap {
        flags.extend(["-Zunstable-options".to_owned(), "-Cpanic=immediate-abort".to_owned()]);
    }
    let script = linker_script();
    if profile == "kernel" && script.exists() {
        flags.push(format!("-Clink-arg=-T{}", script.display()));
    }
    flags
}

fn linker_script() -> PathBuf {
    repository().join("kernel/kernel.ld")
}

/// Builds the kernel; see [`crate::kernel_image`] for where it goes.
///
/// # Errors
/// Where no compiler is to be had, or the kernel does not compile.
pub(crate) fn build() -> Result<()> {
    let toolchain = Toolchain::choose()?;
    relink_after_script_change()?;
    run(toolchain.cargo("build", "kernel", Panics::Handled).args(["--target-dir", TARGET_DIR]))?;
    if !crate::kernel_image().exists() {
        bail!("cargo reports success but left no {}", crate::kernel_image().display());
    }
    Ok(())
}

/// Builds the object that kernels with a configuration are linked from.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_parts() -> Result<()> {
    let toolchain = Toolchain::choose()?;
    let command = |panics| {
        let mut cargo = toolchain.cargo("rustc", "kernel-parts", panics);
        cargo.args(["--target-dir", TARGET_DIR, "--features", "parts"]);
        // Nothing is linked to its place yet, nor left out.
        cargo.args(["--", "-Clink-arg=-r", "-Clink-arg=--no-gc-sections"]);
        cargo
    };
    // The smaller kernels need more of the compiler than others do.
    let is_small = toolchain.has_source()
        && here(&mut command(Panics::Trap)).is_some_and(|output| output.status.success());
    if !is_small {
        run(&mut command(Panics::Handled))?;
    }
    let object = repository().join(TARGET_DIR).join(TARGET).join("kernel-parts/hx-kernel");
    let to = parts();
    fs::create_dir_all(to.parent().expect("a file lies in a folder"))?;
    fs::copy(&object, &to).with_context(|| format!("cannot copy {object:?} to {to:?}"))?;
    Ok(())
}

/// Where [`build_parts`] puts it.
fn parts() -> PathBuf {
    crate::kernel_image().with_extension("parts")
}

/// Links a kernel with only the system calls that a file lists, at `output`.
///
/// # Errors
/// Where the file lists what is no system call, or the kernel's parts do not compile.
pub(crate) fn build_specialised(config: &Path, output: &Path) -> Result<()> {
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {config:?}"))?;
    let mut selection: Selection = toml::from_str(&text).with_context(|| format!("{config:?}"))?;
    if let Some(name) = selection.calls.iter().find(|n| n.parse::<syscalls::Sysno>().is_err()) {
        bail!("{config:?}: {name:?} is no system call");
    }
    selection.calls.insert(hx_linker::CORE_FILES.to_owned());
    build_parts()?;
    hx_linker::link(&parts(), &selection, output)?;
    Ok(())
}

/// Builds a kernel with features beside the one without.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_with(features: &str) -> Result<()> {
    let toolchain = Toolchain::choose()?;
    // A folder of its own: cargo would replace the image in the first.
    let folder = "target/kernel-with-features";
    let mut cargo = toolchain.cargo("build", "kernel", Panics::Handled);
    run(cargo.args(["--target-dir", folder, "--features", features]))?;
    let image = repository().join(folder).join(TARGET).join("kernel/hx-kernel");
    let name = format!("hx-kernel-{}", features.replace(',', "-"));
    let to = crate::kernel_image().with_file_name(name);
    fs::create_dir_all(to.parent().expect("a file lies in a folder"))?;
    fs::copy(&image, &to).with_context(|| format!("cannot copy {image:?} to {to:?}"))?;
    Ok(())
}

/// Lints the kernel; warnings are errors.
///
/// # Errors
/// Where clippy finds something.
pub(crate) fn clippy() -> Result<()> {
    let toolchain = Toolchain::choose()?;
    let mut clippy = toolchain.cargo("clippy", "kernel", Panics::Handled);
    clippy.args(["--target-dir", TARGET_DIR]);
    if toolchain == Toolchain::Debian && !Path::new("/usr/bin/cargo-clippy").exists() {
        println!("kernel clippy: skipped, Debian's rust-web-clippy is not installed");
        return Ok(());
    }
    run(clippy.args(["--", "-Dwarnings"]))
}

/// Cargo does not know that the image depends on the linker script.
fn relink_after_script_change() -> Result<()> {
    let modified = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified());
    let (Ok(image), Ok(script)) = (modified(crate::kernel_image()), modified(linker_script()))
    else {
        return Ok(());
    };
    if script > image {
        // The kernel's own crate only: what it depends on is not linked by the script.
        let fingerprints = crate::kernel_image().with_file_name(".fingerprint");
        for entry in fs::read_dir(&fingerprints)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("hx-kernel-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(())
}
