//! The servers of the system tests, to work with by hand: `cargo run -p wayside-tests --example servers`.
use wayside_tests::{kafka, mosquitto::Mosquitto};

fn main() {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    println!("Kafka      {}\nMosquitto  {}", cluster.bootstrap_servers(), broker.url());
    println!("Both end with this program; close its standard input (Ctrl-D) or press Enter.");
    // Whatever ends the input ends the program.
    let _ = std::io::stdin().read_line(&mut String::new());
}
