//! Watches from outside that an acknowledgement leaves only when its record is on disk.
//!
//! `strace` writes down every read, write and sync of the agent in the order in which they began and ended. [`Trace`]
//! reads that, finds the MQTT packets in the bytes of the broker's connection, and [`Trace::check_acknowledgements`]
//! holds each PUBACK against the log's files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{process, wait_until};

/// Whatever the agent may use to move bytes or to make them durable.
const CALLS: &str =
    "trace=read,readv,pread64,recvfrom,recvmsg,write,writev,pwrite64,pwritev,sendto,sendmsg,fdatasync,fsync";

/// `strace`, to be given the program and its arguments, writing to `trace`.
///
/// The program itself is the child (`-D`), so that signals and `wait` reach it and not strace.
pub fn command(trace: &Path) -> Command {
    let mut command = process::command("strace");
    command.args([
        "-D",
        "-f",
        "--seccomp-bpf",
        "-q",
        "-yy",
        "-xx",
        "-s",
        "1000000",
        "-e",
        CALLS,
        "-e",
        "signal=none",
        "-o",
    ]);
    command.arg(trace).arg("--");
    command
}

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    name: String,
    /// What its file descriptor stands for: a path, or `TCP:[from->to]`.
    target: String,
    /// What was read or written, as far as the call's result says.
    bytes: Vec<u8>,
    /// Negative for an error.
    result: i64,
    /// Lines of the trace: where it began and where it had returned. They order events of all threads.
    began: usize,
    ended: usize,
}

impl Call {
    fn is_sync(&self) -> bool {
        (self.name == "fdatasync" || self.name == "fsync") && self.result == 0
    }

    fn is_write(&self) -> bool {
        (self.name.contains("write") || self.name.starts_with("send")) && self.result > 0
    }

    fn is_read(&self) -> bool {
        (self.name.contains("read") || self.name.starts_with("recv")) && self.result > 0
    }
}

/// What [`Trace::check_acknowledgements`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// PUBACKs and PUBRECs that the agent sent.
    pub acknowledged: usize,
    /// Of these, how many had no durable record: each in words.
    pub premature: Vec<String>,
    /// Successful syncs of the log's files.
    pub syncs: usize,
}

/// The system calls of one run.
pub struct Trace {
    calls: Vec<Call>,
}

impl Trace {
    /// Reads what [`command`] had written, complete to the end of process `pid`.
    #[track_caller]
    pub fn read(path: &Path, pid: u32) -> Self {
        wait_until(Duration::from_secs(30), "strace has written all", || {
            let text = std::fs::read_to_string(path).expect("strace wrote its file");
            text.lines().rev().any(|line| is_end_of(pid, line)).then(|| Self::parse(&text))
        })
    }

    fn parse(text: &str) -> Self {
        let mut calls = Vec::new();
        let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
        for (line_number, line) in text.lines().enumerate() {
            let Some((thread, event)) = line.split_once(' ') else { continue };
            let event = event.trim_start();
            if let Some(start) = event.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread, (line_number, start));
            } else if event.starts_with("<... ") {
                let resumed = event.split_once(" resumed>").map(|(_, rest)| rest);
                if let (Some((began, start)), Some(rest)) = (unfinished.remove(thread), resumed) {
                    calls.extend(parse_call(&format!("{start}{rest}"), began, line_number));
                }
            } else {
                calls.extend(parse_call(event, line_number, line_number));
            }
        }
        calls.sort_by_key(|call| call.began);
        Self { calls }
    }

    /// Holds every PUBACK and PUBREC on the connections of `mqtt_port`, a broker's or the agent's own, against the files below
    /// `log_directory`.
    ///
    /// It may begin to leave only when, after its PUBLISH had arrived, a write to a file of the log began, after
    /// that write's return a sync of the same file began, and that sync returned.
    pub fn check_acknowledgements(&self, mqtt_port: u16, log_directory: &Path) -> Verdict {
        let (client, server) = (format!("->127.0.0.1:{mqtt_port}]"), format!("[127.0.0.1:{mqtt_port}->"));
        let log = log_directory.to_str().expect("our paths are UTF-8");
        let log_calls: Vec<&Call> = self.calls.iter().filter(|call| call.target.starts_with(log)).collect();
        let mut verdict =
            Verdict { syncs: log_calls.iter().filter(|call| call.is_sync()).count(), ..Verdict::default() };
        let mut connections: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
        let is_mqtt = |call: &&Call| call.target.ends_with(&client) || call.target.contains(&server);
        for call in self.calls.iter().filter(|call| call.target.starts_with("TCP")).filter(is_mqtt) {
            connections.entry(&call.target).or_default().push(call);
        }
        for calls in connections.values() {
            let reads =
                calls.iter().filter(|call| call.is_read()).map(|call| (call.ended, call.bytes.as_slice()));
            let writes =
                calls.iter().filter(|call| call.is_write()).map(|call| (call.began, call.bytes.as_slice()));
            let mut arrivals: HashMap<u16, Vec<usize>> = HashMap::new();
            for packet in packets(reads) {
                if let Some(packet_id) = packet.publish_id() {
                    arrivals.entry(packet_id).or_default().push(packet.last);
                }
            }
            for puback in packets(writes).iter().filter_map(Packet::puback) {
                verdict.acknowledged += 1;
                let arrived = arrivals.get(&puback.packet_id).and_then(|all| {
                    // Packet ids come round again: the latest PUBLISH before this PUBACK is meant.
                    all.iter().rev().find(|&&arrived| arrived < puback.left).copied()
                });
                match arrived {
                    None => verdict.premature.push(format!("{puback:?} answers no PUBLISH")),
                    Some(arrived) if !is_durable(&log_calls, arrived, puback.left) => {
                        verdict.premature.push(format!(
                            "{puback:?}: PUBLISH at line {arrived}, no write and sync between"
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        verdict
    }
}

/// Whether `line` says that `pid` has ended. strace pads a process id to five places.
fn is_end_of(pid: u32, line: &str) -> bool {
    line.split_once(' ').is_some_and(|(process, event)| {
        process.parse() == Ok(pid) && event.trim_start().starts_with("+++ exited with ")
    })
}

/// Whether a write to the log and, behind it, a sync of the same file lie between the two lines.
fn is_durable(log_calls: &[&Call], arrived: usize, left: usize) -> bool {
    let later = log_calls.iter().skip_while(|call| call.began < arrived).take_while(|call| call.began < left);
    let mut first_write_ended: HashMap<&str, usize> = HashMap::new();
    for call in later {
        if call.is_write() {
            first_write_ended
                .entry(&call.target)
                .and_modify(|ended| *ended = call.ended.min(*ended))
                .or_insert(call.ended);
        } else if call.is_sync() && call.ended < left {
            let covers = first_write_ended.get(call.target.as_str()).is_some_and(|&ended| ended < call.began);
            if covers {
                return true;
            }
        }
    }
    false
}

/// One MQTT packet in the bytes of a connection.
struct Packet {
    first_byte: u8,
    body: Vec<u8>,
    /// The lines of the calls that moved its first and its last byte.
    first: usize,
    last: usize,
}

#[derive(Debug)]
struct PubAck {
    packet_id: u16,
    /// The line at which it began to leave.
    left: usize,
}

impl Packet {
    /// The packet id of a PUBLISH with QoS above 0.
    fn publish_id(&self) -> Option<u16> {
        if self.first_byte >> 4 != 3 || self.first_byte & 0b110 == 0 {
            return None;
        }
        let topic_size = usize::from(u16::from_be_bytes([*self.body.first()?, *self.body.get(1)?]));
        Some(u16::from_be_bytes([*self.body.get(2 + topic_size)?, *self.body.get(3 + topic_size)?]))
    }

    /// A PUBACK or PUBREC.
    fn puback(&self) -> Option<PubAck> {
        if !matches!(self.first_byte >> 4, 4 | 5) {
            return None;
        }
        Some(PubAck {
            packet_id: u16::from_be_bytes([*self.body.first()?, *self.body.get(1)?]),
            left: self.first,
        })
    }
}

/// Cuts the bytes of one direction of a connection into packets.
fn packets<'a>(chunks: impl Iterator<Item = (usize, &'a [u8])>) -> Vec<Packet> {
    let mut found = Vec::new();
    let mut bytes = chunks.flat_map(|(line, chunk)| chunk.iter().map(move |&byte| (line, byte)));
    while let Some((first, first_byte)) = bytes.next() {
        let (mut size, mut shift, mut last) = (0_usize, 0, first);
        for (line, byte) in bytes.by_ref() {
            last = line;
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body: Vec<(usize, u8)> = bytes.by_ref().take(size).collect();
        if let Some((line, _)) = body.last() {
            last = *line;
        }
        if body.len() == size {
            found.push(Packet {
                first_byte,
                body: body.into_iter().map(|(_, byte)| byte).collect(),
                first,
                last,
            });
        }
    }
    found
}

/// `name(7<target>, "\x68\x69", 2) = 2`, or nothing for another line.
fn parse_call(text: &str, began: usize, ended: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result.split([' ', '<']).next()?.parse().ok()?;
    let (_, annotation) = arguments.split_once('<')?;
    let end =
        if annotation.starts_with("TCP") { annotation.find("]>")? + 1 } else { annotation.find('>')? };
    let target = unescape(&annotation[..end]);
    // A message of several parts has several strings; those of hexadecimal digits alone are data.
    let mut bytes: Vec<u8> =
        annotation[end..].split('"').skip(1).step_by(2).flat_map(unescape_bytes).collect();
    bytes.truncate(usize::try_from(result).unwrap_or(0));
    Some(Call { name: name.to_owned(), target, bytes, result, began, ended })
}

/// The bytes of `\x68\x69`.
fn unescape_bytes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok()).collect()
}

/// A path is escaped like data, a socket's addresses are not.
fn unescape(text: &str) -> String {
    if text.starts_with("\\x") {
        String::from_utf8_lossy(&unescape_bytes(text)).into_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISH: &str = r#"9 recvfrom(7<TCP:[127.0.0.1:5->127.0.0.1:1883]>, "\x32\x05\x00\x01\x61\x00\x09", 4096, 0, NULL, NULL) = 7"#;
    const WRITE: &str = r#"8 pwrite64(4</log/db>, "\x01\x02", 2, 0) = 2"#;
    const SYNC: &str = "8 fdatasync(4</log/db>) = 0";
    const PUBACK: &str =
        r#"9 sendto(7<TCP:[127.0.0.1:5->127.0.0.1:1883]>, "\x40\x02\x00\x09", 4, MSG_NOSIGNAL, NULL, 0) = 4"#;

    fn check(lines: &[&str]) -> (usize, usize) {
        let verdict = Trace::parse(&lines.join("\n")).check_acknowledgements(1883, Path::new("/log"));
        (verdict.acknowledged, verdict.premature.len())
    }

    #[test]
    fn a_puback_after_write_and_sync_is_right() {
        assert_eq!(check(&[PUBLISH, WRITE, SYNC, PUBACK]), (1, 0));
        assert_eq!(check(&[WRITE, SYNC, PUBLISH]), (0, 0));
    }

    #[test]
    fn an_answer_of_the_agents_own_server_is_held_against_the_same_rule() {
        let swapped = |line: &str| line.replace("127.0.0.1:5->127.0.0.1:1883", "127.0.0.1:1883->127.0.0.1:5");
        let (publish, puback) = (swapped(PUBLISH), swapped(PUBACK));
        assert_eq!(check(&[&publish, WRITE, SYNC, &puback]), (1, 0));
        assert_eq!(check(&[&publish, WRITE, &puback, SYNC]), (1, 1));
        let pubrec = puback.replace("\\x40", "\\x50");
        assert_eq!(check(&[&publish, WRITE, SYNC, &pubrec]), (1, 0));
        assert_eq!(check(&[&publish, &pubrec]), (1, 1));
    }

    #[test]
    fn a_puback_without_its_own_write_and_sync_is_found() {
        for lines in [
            &[PUBLISH, PUBACK][..],
            &[PUBLISH, WRITE, PUBACK, SYNC],
            &[PUBLISH, SYNC, PUBACK],
            &[PUBLISH, SYNC, WRITE, PUBACK],
            &[WRITE, SYNC, PUBLISH, PUBACK],
            &[WRITE, SYNC, PUBACK],
            &[PUBLISH, WRITE, "8 fdatasync(5</other>) = 0", PUBACK],
            &[PUBLISH, WRITE, "8 fdatasync(4</log/db>) = -1 EIO (Input/output error)", PUBACK],
        ] {
            assert_eq!(check(lines), (1, 1), "{lines:#?}");
        }
    }

    #[test]
    fn a_puback_while_the_sync_is_still_running_is_found() {
        let (begins, returns) = ("8 fdatasync(4</log/db> <unfinished ...>", "8 <... fdatasync resumed>) = 0");
        assert_eq!(check(&[PUBLISH, WRITE, begins, returns, PUBACK]), (1, 0));
        assert_eq!(check(&[PUBLISH, WRITE, begins, PUBACK, returns]), (1, 1));
        assert_eq!(check(&[PUBLISH, begins, WRITE, returns, PUBACK]), (1, 1));
    }

    #[test]
    fn the_end_of_a_process_is_found_whatever_the_size_of_its_id() {
        for line in
            ["123456 +++ exited with 0 +++", "12345 +++ exited with 0 +++", "910   +++ exited with 1 +++"]
        {
            let pid = line.split(' ').next().unwrap().parse().unwrap();
            assert!(is_end_of(pid, line), "{line}");
            assert!(!is_end_of(pid + 1, line), "{line}");
        }
        assert!(!is_end_of(910, SYNC));
        assert!(!is_end_of(8, SYNC));
    }

    #[test]
    fn packets_are_found_across_reads() {
        let (head, tail) = (
            r#"9 read(7<TCP:[127.0.0.1:5->127.0.0.1:1883]>, "\x20\x02\x00\x00\x32\x05\x00\x01", 4096) = 8"#,
            r#"9 readv(7<TCP:[127.0.0.1:5->127.0.0.1:1883]>, [{iov_base="\x61", iov_len=1}, {iov_base="\x00\x09", iov_len=2}], 2) = 3"#,
        );
        assert_eq!(check(&[head, tail, WRITE, SYNC, PUBACK]), (1, 0));
        assert_eq!(check(&[head, WRITE, SYNC, tail, PUBACK]), (1, 1));
    }
}
