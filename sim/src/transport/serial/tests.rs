//! The lines against the protocol's own gateway, in real time over real pseudo-terminals.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use tokio::net::unix::pipe;
use wayside_protocol::link::gateway::{Event, Gateway};

use super::*;
use crate::ledger::{Ledger, LedgerWriter};
use crate::load::{Model as _, Schedule};
use crate::traffic::Town;

/// Commits what it gets at once, and keeps the sequence numbers by uid.
async fn gateway(port: &Path, seen: &std::sync::Mutex<BTreeMap<u64, Vec<u32>>>) {
    let open = OpenOptions::new().read(true).write(true).custom_flags(0o4000).open(port).unwrap();
    let reader = pipe::Receiver::from_file_unchecked(open.try_clone().unwrap()).unwrap();
    let mut gateway = Gateway::<1024, 4>::new();
    let epoch = Instant::now();
    let (mut bytes, mut frame) = ([0; 512], [0; 512]);
    loop {
        let now_us = u64::try_from(epoch.elapsed().as_micros()).unwrap();
        while let Some(length) = gateway.poll_transmit(now_us, &mut frame) {
            rustix::io::write(&open, &frame[..length]).unwrap();
        }
        // The gateway's timers are at most this coarse.
        let _ = tokio::time::timeout(Duration::from_millis(5), reader.readable()).await;
        let length = match reader.try_read(&mut bytes) {
            Ok(length) if length > 0 => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            // The line has ended.
            _ => return std::future::pending().await,
        };
        let (mut greeted, mut taken) = (Vec::new(), Vec::new());
        gateway.receive(now_us, &bytes[..length], |event| match event {
            Event::Hello(device) if device.needs_accept => greeted.push((device.uid, device.boot)),
            Event::Data(data) => taken.push((data.uid, data.boot, data.seq)),
            _ => {}
        });
        for (uid, boot) in greeted {
            gateway.accept(uid, boot, Some(0));
        }
        for (uid, boot, seq) in taken {
            seen.lock().unwrap().entry(uid).or_default().push(seq);
            gateway.committed(now_us, uid, boot, seq);
        }
    }
}

async fn check_delivery(noise: f64, slips: f64, readings: u64) {
    const DEVICES: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let (link, path) = (dir.path().join("port"), dir.path().join("ledger"));
    let ledger = LedgerWriter::create(&path).unwrap();
    let tally = Tally::new(Town::STREAM, device_ids(Town::STREAM, 5, DEVICES), Some(ledger.clone()));
    let args = SerialArgs { per_line: 4, baud: 460_800, noise, slips };
    let mut lines = Lines::start(&link, &args, Town::STREAM, DEVICES, tally.clone(), 5).unwrap();
    let mut schedule = Schedule::new(Town::new(DEVICES, 5, 12.0, [60.0, 24.0]), 100.0, 0);
    for _ in 0..readings * DEVICES as u64 {
        assert!(lines.try_send(&schedule.produce()));
    }

    let seen = std::sync::Mutex::new(BTreeMap::new());
    tokio::select! {
        () = gateway(&link, &seen) => {}
        drained = tokio::time::timeout(Duration::from_secs(60), lines.drain()) => drained.expect("the readings never got through"),
    }
    assert!(!link.exists(), "the link outlived its line");
    ledger.close().unwrap();
    assert!(tally.summary(Duration::from_secs(1)).is_complete());
    let ledger = Ledger::read(&[path]).unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), DEVICES);
    for (uid, seqs) in seen {
        let entries = &ledger.device(Town::STREAM, &format!("{uid:016x}")).unwrap().entries;
        let sent: Vec<String> = entries.iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(sent, seqs.iter().map(|seq| format!("s{seq}")).collect::<Vec<_>>());
        assert_eq!(sent.len() as u64, readings);
        assert!(entries.iter().all(|entry| entry.acked_micros().is_some()));
    }
}

#[tokio::test]
async fn readings_cross_a_clean_line_once_and_in_order() {
    Box::pin(check_delivery(0.0, 0.0, 60)).await;
}

#[tokio::test]
async fn readings_cross_a_noisy_line_once_and_in_order() {
    Box::pin(check_delivery(1e-4, 3e-4, 40)).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_the_link_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    std::fs::write(&path, "precious").unwrap();
    assert!(Pty::open(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn uids_differ_between_devices_streams_and_seeds() {
    let mut all: Vec<String> = [("occupancy", 1), ("occupancy", 2), ("vehicle-positions", 1)]
        .into_iter()
        .flat_map(|(stream, seed)| device_ids(stream, seed, 100))
        .collect();
    assert!(all.iter().all(|id| id.len() == 16));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 300);
}

#[test]
fn lines_after_the_first_are_numbered() {
    assert_eq!(numbered(Path::new("/tmp/tty"), 0), Path::new("/tmp/tty"));
    assert_eq!(numbered(Path::new("/tmp/tty"), 2), Path::new("/tmp/tty.2"));
}
