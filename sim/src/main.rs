//! The `wayside-sim` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    wayside_sim::cli::main(std::env::args_os())
}
