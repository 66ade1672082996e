# What the scripts of this folder share; source it after setting `me`, the script's name.
#
# A rustup toolchain would need `rustup target add`. Debian 12 instead has a compiler new enough for this workspace with its
# library's source (rustc-web, rust-web-src: about 140 MB to download, once), from which `core` or `std` is built for any
# target: one recipe for all of them, and no packages of a foreign architecture. Any cargo from 1.85 on drives that compiler.

rust_packages=(rustc-web rust-web-src)

fail() { echo "$me: $*" >&2; exit 1; }

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Installs only what is missing, so that a second run does not touch the network.
install_missing() { # PACKAGE...
  local missing=() package
  command -v dpkg-query >/dev/null || fail "needs Debian: the compilers come from its packages"
  command -v cargo >/dev/null || fail "needs cargo in PATH"
  for package; do
    installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || fail "run as root, or first: apt-get install --no-install-recommends ${missing[*]}"
  echo "installing ${missing[*]}"
  # With that run level no package starts a server.
  local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -y -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update </dev/null || fail "apt-get update failed: is the network up?"
  "${apt[@]}" install --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
    fail "apt-get could not install ${missing[*]}: they are in bookworm and bookworm-security"
}

# From here on, cargo uses Debian's compiler, and may build the library from its source. Give it a target directory of its
# own: what another compiler built there would be built again.
use_debian_rust() {
  [ -e /usr/lib/rustlib/src/rust/library/core/Cargo.toml ] ||
    fail "rust-web-src is installed, but its source is not where the compiler looks"
  export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
  unset RUSTFLAGS RUSTC_WRAPPER
}

# Reads `TARGET [--profile PROFILE] [--only STEP]` into `target`, `profile` and `only`; `--help` prints the head of the script and
# ends it.
read_target_and_profile() {
  target='' profile=dist only=''
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "deploy/cross/$me"; exit ;;
      --profile) profile=${2:?--profile needs a name}; shift ;;
      --only) only=${2:?--only needs a step}; shift ;;
      -*) fail "there is no option \`$1\`; see --help" ;;
      *) target=$1 ;;
    esac
    shift
  done
  [ -n "$target" ] || fail "which target? see --help"
}

# Installs the compilers for `target`. Sets `gnu`, its name in Debian's packages; `qemu`, what runs its programs;
# `cargo_options`, which build for it; `cargo_variable`, the beginning of its variables for cargo; and `program`, the agent.
use_linux_target() {
  case $target in
    aarch64-unknown-linux-gnu) gnu=aarch64-linux-gnu qemu=qemu-aarch64-static ;;
    armv7-unknown-linux-gnueabihf) gnu=arm-linux-gnueabihf qemu=qemu-arm-static ;;
    *) fail "the targets are aarch64-unknown-linux-gnu and armv7-unknown-linux-gnueabihf, not \`$target\`" ;;
  esac
  # Perl configures OpenSSL, which librdkafka brings with its TLS.
  install_missing "${rust_packages[@]}" build-essential cmake perl "gcc-$gnu" "g++-$gnu"
  use_debian_rust
  cargo_variable=CARGO_TARGET_${target^^}
  cargo_variable=${cargo_variable//-/_}
  export "${cargo_variable}_LINKER=$gnu-gcc"
  # For a small binary: the linker leaves out each C function that nobody calls; no C code is unwound, since a panic ends at the
  # Rust function that C called; and zstd has level 1 alone, which is all that is asked for, and no formats older than 2016.
  local cflags=(-ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables -fno-unwind-tables
    -UZSTD_LEGACY_SUPPORT -DZSTD_LEGACY_SUPPORT=0) strategy
  for strategy in DFAST GREEDY LAZY LAZY2 BTLAZY2 BTOPT BTULTRA; do
    cflags+=("-DZSTD_EXCLUDE_${strategy}_BLOCK_COMPRESSOR")
  done
  export "CFLAGS_${target//-/_}=${cflags[*]}"
  local directory
  directory=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cross
  # The same library crates for programs and for tests, so that nothing is built twice. Without `backtrace`, whose names a stripped
  # binary does not have, and with the smaller of the algorithms that it has two of; a panic still says where it was.
  cargo_options=(--locked --target "$target" --profile "$profile" --target-dir "$directory"
    -Zbuild-std=std,panic_unwind,test -Zbuild-std-features=panic-unwind,optimize_for_size)
  program=$directory/$target/$profile/wayside
}
