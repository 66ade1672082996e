//! The faults, one cycle each.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::Duration;

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{What, site::Site};
use crate::kafka::NODES;
use crate::link::Flow;
use crate::{PATIENCE, clock, wait_until};

/// How long Kafka is away in [`What::Outage`].
const OUTAGE: Duration = Duration::from_secs(60);

/// One cycle of `what`; on return the agent runs.
pub(super) fn inject(what: What, site: &mut Site, chance: &mut SmallRng) {
    match what {
        What::Kill => kill(site, chance),
        What::Power => power(site, chance),
        What::VolatileCache => volatile_cache(site, chance),
        What::DiskFull => disk_full(site, chance),
        What::Kafka => kafka(site, chance),
        What::Network => network(site, chance),
        What::Mosquitto => mosquitto(site, chance),
        What::Serial => serial(site, chance),
        What::Clock => clock(site, chance),
        What::Corrupt => corrupt(site, chance),
        What::Outage => outage(site),
    }
}

/// Some while, up to `most_ms`.
fn some_while(chance: &mut SmallRng, most_ms: u64) {
    sleep(Duration::from_millis(chance.random_range(0..=most_ms)));
}

/// Every third life ends while it starts; the others have stored something.
fn kill(site: &mut Site, chance: &mut SmallRng) {
    if chance.random_ratio(1, 3) {
        site.agent.kill();
        site.agent.begin();
        some_while(chance, 300);
    } else {
        site.wait_commit(0.0);
        some_while(chance, 1500);
    }
    site.agent.kill();
    site.agent.start();
}

fn power(site: &mut Site, chance: &mut SmallRng) {
    site.wait_commit(0.0);
    some_while(chance, 1000);
    let disk = site.disk.as_ref().expect("the log has a disk of its own");
    site.agent.freeze();
    disk.cut_power();
    site.agent.kill();
    disk.mount_again();
    site.agent.start();
}

/// Every fourth life ends while it starts: the log is recovered, and an epoch begun, over what the cut before has left.
fn volatile_cache(site: &mut Site, chance: &mut SmallRng) {
    if chance.random_ratio(1, 4) {
        site.agent.kill();
        site.agent.begin();
        cut_amid_writes(site, chance, 30);
    } else {
        site.wait_commit(0.0);
        cut_amid_writes(site, chance, 300);
    }
    site.agent.start();
}

/// Some while, up to `most` writes to the drive, then the power fails.
fn cut_amid_writes(site: &mut Site, chance: &mut SmallRng, most: u32) {
    let Site { agent, disk, .. } = site;
    let disk = disk.as_ref().expect("the log has a disk of its own");
    disk.drive().cut_power(chance.random_range(1..=most), chance, || agent.freeze());
    agent.kill();
    disk.mount_again();
}

fn disk_full(site: &mut Site, chance: &mut SmallRng) {
    site.wait_commit(0.0);
    let filler = site.disk.as_ref().expect("the log has a disk of its own").fill();
    wait_until(PATIENCE, "the log finds its disk full", || {
        // It still ends what it has room for, and so does the file system.
        filler.fill_up();
        (site.metric("commit_waiting") == 1.0).then_some(())
    });
    some_while(chance, 500);
    if chance.random() {
        site.agent.kill();
        site.agent.start();
    }
    let commits = site.metric("commit_commits_total");
    drop(filler);
    site.wait_commit(commits);
}

fn kafka(site: &mut Site, chance: &mut SmallRng) {
    let one = *NODES.choose(chance).expect("there are some");
    let others: Vec<usize> = NODES.into_iter().filter(|node| *node != one).collect();
    let choice = chance.random_range(0..5);
    let cluster = site.cluster();
    match choice {
        0 => cluster.kill(one),
        1 => others.into_iter().for_each(|node| cluster.kill(node)),
        2 => cluster.kill_all(),
        3 => cluster.pause(one),
        _ => cluster.wipe(one),
    }
    let commits = site.metric("commit_commits_total");
    some_while(chance, 8000);
    // Whatever Kafka does, what comes is stored and answered.
    site.wait_commit(commits);
    site.cluster().heal();
}

fn network(site: &mut Site, chance: &mut SmallRng) {
    let slow = Flow::Slow(Duration::from_millis(chance.random_range(10..=300)));
    let flows = [
        (Flow::Stalled, Flow::Stalled),
        (Flow::Stalled, Flow::Open),
        (Flow::Open, Flow::Stalled),
        (slow, slow),
    ];
    let (forth, back) = *flows.choose(chance).expect("there are some");
    let uplink: bool = chance.random();
    let field = !uplink || chance.random();
    let commits = site.metric("commit_commits_total");
    let failing = site.links(uplink, field);
    failing.iter().for_each(|link| link.set(forth, back));
    some_while(chance, 5000);
    // The serial line goes on: whatever the network does, what comes is stored and answered.
    site.wait_commit(commits);
    if chance.random() {
        failing.iter().for_each(|link| link.cut());
    }
    failing.iter().for_each(|link| link.set(Flow::Open, Flow::Open));
}

fn mosquitto(site: &mut Site, chance: &mut SmallRng) {
    site.wait_commit(0.0);
    some_while(chance, 1000);
    let dies_too: bool = chance.random();
    let broker = site.broker.as_mut().expect("a broker is what stops");
    // Killed, it would lose what it has acknowledged itself.
    broker.stop();
    if dies_too {
        site.agent.kill();
    }
    some_while(chance, 500);
    site.broker.as_mut().expect("as above").start_again();
    if dies_too {
        site.agent.start();
    }
    let commits = site.metric("commit_commits_total");
    site.wait_commit(commits);
}

fn serial(site: &mut Site, chance: &mut SmallRng) {
    some_while(chance, 1000);
    if chance.random() {
        site.agent.kill();
        site.agent.start();
    }
    let commits = site.metric("commit_commits_total");
    site.replug();
    site.wait_commit(commits);
}

fn clock(site: &mut Site, chance: &mut SmallRng) {
    let jump = ["+0", "-5m", "+30m", "+3h", "-1y", "+1y", "-56y"].choose(chance).expect("there are some");
    clock::set(&site.clock, jump);
    if chance.random() {
        site.agent.kill();
        site.agent.start();
    }
    let commits = site.metric("commit_commits_total");
    some_while(chance, 1000);
    site.wait_commit(commits);
}

/// Up to eight bits, anywhere below the log's directory.
fn corrupt(site: &mut Site, chance: &mut SmallRng) {
    site.wait_commit(0.0);
    some_while(chance, 1000);
    site.agent.kill();
    let mut files = Vec::new();
    let mut directories = vec![site.agent.log_directory()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("it was written").flatten() {
            let kind = entry.file_type().expect("Linux says it");
            if kind.is_dir() { &mut directories } else { &mut files }.push(entry.path());
        }
    }
    for _ in 0..chance.random_range(1..=8) {
        let path = files.choose(chance).expect("a log has files");
        let file = File::options().read(true).write(true).open(path).expect("it is ours");
        let size_bytes = file.metadata().expect("it is open").len();
        if size_bytes > 0 {
            let (place, bit) = (chance.random_range(0..size_bytes), chance.random_range(0..8));
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).expect("within the file");
            file.write_all_at(&[byte[0] ^ 1 << bit], place).expect("it is ours");
        }
    }
    site.agent.start();
}

fn outage(site: &mut Site) {
    site.cluster().kill_all();
    sleep(OUTAGE / 2);
    site.agent.kill();
    site.agent.start();
    sleep(OUTAGE / 2);
    site.cluster().heal();
}
