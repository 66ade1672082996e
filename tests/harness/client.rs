//! MQTT clients as devices use them: programs around libraries of other people, in `tests/clients`, that all obey the same
//! lines.
//!
//! ```text
//! PROGRAM HOST PORT VERSION [ca=FILE] [user=NAME] [password=TEXT]      VERSION is 3 (3.1.1) or 5
//!
//! connect ID clean|keep [WILL_TOPIC WILL_PAYLOAD]    -> connected 0|1|?    whether there was a session; ? where the library
//!                                                    -> refused REASON     does not say
//! publish QOS RETAIN TOPIC PAYLOAD                   -> published          after PUBACK or PUBCOMP
//! subscribe QOS TOPIC_FILTER                         -> subscribed         one for each connection
//! disconnect                                         -> disconnected
//! die                                                                      ends without DISCONNECT
//!
//!                                                    -> message QOS RETAIN TOPIC PAYLOAD     at any time
//! ```
//!
//! No word has a space in it. With `keep` the session lasts for 300 s, else it ends with its connection. A will has QoS 1.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use tempfile::NamedTempFile;

use crate::{PATIENCE, binary, process, root};

/// A kind of client.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// What its authors call it.
    pub name: &'static str,
    /// What it speaks.
    pub versions: &'static [u8],
    command: fn() -> Command,
}

/// All of them.
pub const PROGRAMS: &[Program] = &[
    Program { name: "mosquitto", versions: &[3, 5], command: || script("mosquitto/client", None) },
    Program {
        name: "paho-mqtt",
        versions: &[3, 5],
        command: || script("paho-mqtt/client.py", Some(python())),
    },
    Program { name: "aiomqtt", versions: &[3, 5], command: || script("aiomqtt/client.py", Some(python())) },
    Program { name: "mqtt.js", versions: &[3, 5], command: mqtt_js },
    Program { name: "paho.mqtt.golang", versions: &[3], command: || installed("go/paho.mqtt.golang") },
    Program { name: "paho.golang", versions: &[5], command: || installed("go/paho.golang") },
    Program { name: "rumqttc", versions: &[3, 5], command: || process::command(binary("client-rumqttc")) },
];

impl Program {
    /// The program of this name.
    pub fn named(name: &str) -> &'static Self {
        PROGRAMS.iter().find(|program| program.name == name).expect("one of PROGRAMS")
    }
}

/// A message that a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Quality of service with which it came.
    pub qos: u8,
    /// RETAIN of its packet.
    pub retain: bool,
    /// Topic name.
    pub topic: String,
    /// Payload, which is text in these tests.
    pub payload: String,
}

/// A running program. Killed when dropped.
pub struct Client {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    messages: Vec<Message>,
    log: NamedTempFile,
}

impl Client {
    /// Starts `program` for a server on `port` of this machine.
    pub fn start(program: &Program, port: u16, version: u8, options: &[String]) -> Self {
        let log = NamedTempFile::new().expect("the directory for temporary files is writable");
        let stderr = File::options().append(true).open(log.path()).expect("it was made above");
        let mut command = (program.command)();
        command.args(["127.0.0.1", &port.to_string(), &version.to_string()]).args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = process::spawn(command);
        let output = BufReader::new(child.stdout.take().expect("it was asked for a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let input = child.stdin.take().expect("it was asked for a pipe");
        let name = format!("{} with version {version}", program.name);
        Self { name, child, input, lines, messages: Vec::new(), log }
    }

    /// Connects as `id`, with a new session that ends with its connection or, with `keep`, with the one that was kept. Returns
    /// whether there was one, if the client tells.
    ///
    /// # Errors
    /// The server refuses it: what the client says about that.
    #[track_caller]
    pub fn connect(
        &mut self,
        id: &str,
        keep: bool,
        will: Option<(&str, &str)>,
    ) -> Result<Option<bool>, String> {
        let will = will.map_or_else(String::new, |(topic, payload)| format!(" {topic} {payload}"));
        self.order(&format!("connect {id} {}{will}", if keep { "keep" } else { "clean" }));
        let answer = self.answer();
        match answer.split_once(' ') {
            Some(("connected", "1")) => Ok(Some(true)),
            Some(("connected", "0")) => Ok(Some(false)),
            Some(("connected", _)) => Ok(None),
            Some(("refused", reason)) => Err(reason.to_owned()),
            _ => panic!("{}: {answer:?} for CONNECT", self.name),
        }
    }

    /// Publishes; returns when that is complete.
    #[track_caller]
    pub fn publish(&mut self, qos: u8, retain: bool, topic: &str, payload: &str) {
        self.order(&format!("publish {qos} {} {topic} {payload}", u8::from(retain)));
        self.expect("published");
    }

    /// Subscribes; returns when the server has granted it.
    #[track_caller]
    pub fn subscribe(&mut self, qos: u8, topic_filter: &str) {
        self.order(&format!("subscribe {qos} {topic_filter}"));
        self.expect("subscribed");
    }

    /// Says DISCONNECT.
    #[track_caller]
    pub fn disconnect(&mut self) {
        self.order("disconnect");
        self.expect("disconnected");
    }

    /// Ends the program; it does not say DISCONNECT.
    #[track_caller]
    pub fn die(mut self) {
        self.order("die");
        self.child.wait().expect("our own child can be waited for");
    }

    /// The next message that it gets or has got.
    #[track_caller]
    pub fn message(&mut self) -> Message {
        while self.messages.is_empty() {
            let line = self.line();
            assert!(self.take_message(&line), "{}: {line:?} without an order", self.name);
        }
        self.messages.remove(0)
    }

    #[track_caller]
    fn order(&mut self, line: &str) {
        if let Err(error) = writeln!(self.input, "{line}") {
            panic!("{}, {line:?}: {error}\n{}", self.name, self.log());
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &str) {
        assert_eq!(self.answer(), expected, "{}", self.name);
    }

    /// The next line that is no message.
    #[track_caller]
    fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            if !self.take_message(&line) {
                return line;
            }
        }
    }

    fn take_message(&mut self, line: &str) -> bool {
        let Some(message) = line.strip_prefix("message ") else { return false };
        let words: Vec<&str> = message.split(' ').collect();
        let [qos, retain, topic, payload] = words[..] else { panic!("{}: {line:?}", self.name) };
        self.messages.push(Message {
            qos: qos.parse().expect("a digit"),
            retain: retain == "1",
            topic: topic.to_owned(),
            payload: payload.to_owned(),
        });
        true
    }

    #[track_caller]
    fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{} says nothing\n{}", self.name, self.log()),
            Err(RecvTimeoutError::Disconnected) => panic!("{} has ended\n{}", self.name, self.log()),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `tests/clients/fetch` installs.
fn installation(path: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let found = target.join("clients").join(path);
    assert!(found.exists(), "{} is not there: run `tests/run`, or `tests/clients/fetch`", found.display());
    found
}

fn installed(path: &str) -> Command {
    process::command(installation(path))
}

fn python() -> PathBuf {
    installation("venv/bin/python")
}

fn script(path: &str, interpreter: Option<PathBuf>) -> Command {
    let script = root().join("tests/clients").join(path);
    let Some(interpreter) = interpreter else { return process::command(script) };
    let mut command = process::command(interpreter);
    command.arg(script);
    command
}

fn mqtt_js() -> Command {
    let mut command = script("mqtt.js/client.js", Some("node".into()));
    command.env("NODE_PATH", installation("npm/node_modules"));
    command
}
