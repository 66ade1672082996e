//! The `wayside` binary; all of it is in the library, so that the simulator's demo can start the real agent too.

use std::process::ExitCode;

fn main() -> ExitCode {
    wayside::cli::main(std::env::args_os())
}
