//! The servers of the system tests, to work with by hand or under another command:
//!
//! ```text
//! cargo run -p wayside-tests --example servers                  until Enter or the end of the input
//! cargo run -p wayside-tests --example servers -- COMMAND...    while COMMAND runs; ends with its exit code
//! ```
//!
//! The command finds the addresses in `WAYSIDE_TEST_KAFKA` and `WAYSIDE_TEST_MQTT`.
use std::process::{Command, ExitCode};

use wayside_tests::{kafka, mosquitto::Mosquitto};

fn main() -> ExitCode {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        println!("Kafka      {}\nMosquitto  {}", cluster.bootstrap_servers(), broker.url());
        println!("Both end with this program; close its standard input (Ctrl-D) or press Enter.");
        // Whatever ends the input ends the program.
        let _ = std::io::stdin().read_line(&mut String::new());
        return ExitCode::SUCCESS;
    };
    let mut command = Command::new(&program);
    command.args(arguments);
    command.env("WAYSIDE_TEST_KAFKA", cluster.bootstrap_servers()).env("WAYSIDE_TEST_MQTT", broker.url());
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
