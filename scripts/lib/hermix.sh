# shellcheck shell=sh
# Sourced by the scripts beside this folder, with $repo set to the repository's root: sees to it
# that a fresh Debian 12 has what is needed, and that what is run is up to date.
#
# A stamp in target/ is as old as the last complete build. A source file or folder that is newer
# calls for another one; otherwise the price of the check is one `find`.

# Sets the working compiler: rustup's where it is at least the version that Cargo.toml asks for,
# else Debian's.
hermix_toolchain() {
    if ! command -v cargo >/dev/null && [ -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    if hermix_recent; then return; fi
    compiler="rustc-web cargo-web rustfmt-web rust-web-clippy"
    # shellcheck disable=SC2086 # one word per package
    "$repo/scripts/lib/apt-install" $compiler
    PATH=/usr/bin:$PATH
    if hermix_recent; then return; fi
    # An old release's; the latest come as security updates.
    # shellcheck disable=SC2086
    "$repo/scripts/lib/apt-install" --upgrade $compiler
    if hermix_recent; then return; fi
    echo "hermix: no Rust compiler of at least version $(hermix_wanted): install one by rustup" >&2
    exit 1
}

hermix_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml"; }

hermix_recent() {
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    found=$(cd "$repo" && rustc --version 2>/dev/null) || return 1
    found=${found#rustc }
    printf '%s\n%s\n' "$(hermix_wanted)" "${found%% *}" | sort -C -V
}

# hermix_ready STAMP COMMAND...: runs the commands, which build, unless nothing changed since they
# last succeeded.
hermix_ready() {
    stamp=$repo/target/.ready-$1
    shift
    if [ -e "$stamp" ] && [ -z "$(cd "$repo" && find Cargo.toml Cargo.lock rust-toolchain.toml \
        .cargo abi analyzer bench kernel libraries linker loader rewriter run scripts syscalls xtask \
        -newer "$stamp" -print -quit)" ]; then
        return
    fi
    (
        set -e
        exec >&2 </dev/null
        mkdir -p "$repo/target"
        touch "$stamp.new"
        cd "$repo"
        scripts/lib/apt-install qemu-system-x86 gcc libc6-dev binutils ca-certificates
        hermix_toolchain
        "$@"
        mv "$stamp.new" "$stamp"
    ) || exit 1
}

# hermix_build PACKAGE: the kernel and a host tool.
hermix_build() {
    cargo build --quiet --release --locked --package "$1"
    cargo xtask kernel
}

# hermix_exec TOOL ARGS...: becomes the tool, built if need be.
hermix_exec() {
    tool=$1
    shift
    hermix_ready "$tool" hermix_build "$tool"
    # Which of the standard streams are closed: the tool cannot tell any more.
    HERMIX_CLOSED=
    for fd in 0 1 2; do [ -e "/proc/$$/fd/$fd" ] || HERMIX_CLOSED="$HERMIX_CLOSED $fd"; done
    : "${HERMIX_KERNEL=$repo/target/kernel/x86_64-unknown-none/kernel/hx-kernel}"
    export HERMIX_KERNEL HERMIX_CLOSED
    exec "$repo/target/release/$tool" "$@"
}
