//! The drive whose power the campaign cuts: what was flushed is there afterwards, and of the rest every sector may be or not. So a
//! writer that does not flush is found out.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use rustix::process::{Pid, Signal, kill_process};
use wayside_tests::disk::Disk;
use wayside_tests::{note, process};

const CUTS: usize = 20;
const BLOCKS: usize = 64;
const BLOCK_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

/// Writes the blocks of a file again and again, numbers each time in each of its sectors, and says each number when it is written.
/// Past the page cache, so that the drive has it whether it was flushed or not. A process of its own, as `harness/drive.rs` wants it.
const WRITER: &str = "\
import itertools, mmap, os, sys
path, blocks, flushes = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'flushes'
file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
for number in itertools.count():
    block[:] = number.to_bytes(8, 'little') * 512
    os.pwrite(file, block, number % blocks * 4096)
    # Where the blocks are is flushed in any case.
    if flushes or number < blocks:
        os.fsync(file)
    os.write(1, number.to_bytes(8, 'little'))
";

/// What has become of the newest write to each block that the writer was told of.
#[derive(Debug, Default)]
struct Fates {
    whole: usize,
    torn: usize,
    vanished: usize,
}

impl Fates {
    fn count(&mut self, content: &[u8], last: u64) {
        let blocks = BLOCKS as u64;
        for (block, bytes) in (0..).zip(content.chunks(BLOCK_BYTES)) {
            let newest = last - (last + blocks - block) % blocks;
            let numbers = bytes.chunks(SECTOR_BYTES).map(|sector| {
                let (words, rest) = sector.as_chunks::<8>();
                assert!(rest.is_empty() && words.iter().all(|word| *word == words[0]), "half a sector");
                u64::from_le_bytes(words[0])
            });
            let stayed = numbers.filter(|number| *number >= newest).count();
            match stayed {
                0 => self.vanished += 1,
                8 => self.whole += 1,
                _ => self.torn += 1,
            }
        }
    }
}

/// What is left of what a writer wrote, over some cuts; `None` where the machine lacks what it takes.
fn cut_again_and_again(flushes: bool) -> Option<Fates> {
    let disk = Disk::volatile(16)?;
    let mut chance = SmallRng::seed_from_u64(std::process::id().into());
    let mut fates = Fates::default();
    for _ in 0..CUTS {
        let path = disk.path().join("file");
        let mut command = process::command("python3");
        command.args(["-c", WRITER]).arg(&path).arg(BLOCKS.to_string());
        command.arg(if flushes { "flushes" } else { "forgets" }).stdout(Stdio::piped());
        let mut writer = process::spawn(command);
        let mut told = writer.stdout.take().unwrap();
        // Every block was written once.
        told.read_exact(&mut [0; BLOCKS * 8]).unwrap();
        let pid = Pid::from_child(&writer);
        let writes = chance.random_range(1..=200);
        disk.drive().cut_power(writes, &mut chance, || kill_process(pid, Signal::STOP).unwrap());
        writer.kill().unwrap();
        writer.wait().unwrap();
        let mut numbers = Vec::new();
        told.read_to_end(&mut numbers).unwrap();
        let last =
            numbers.as_chunks().0.last().map_or(BLOCKS as u64 - 1, |number| u64::from_le_bytes(*number));
        disk.mount_again();
        fates.count(&content(&path), last);
    }
    note(&format!("{fates:?}"));
    Some(fates)
}

/// Read by a process of its own too.
fn content(path: &Path) -> Vec<u8> {
    let content = process::command("cat").arg(path).output().unwrap().stdout;
    assert_eq!(content.len(), BLOCKS * BLOCK_BYTES);
    content
}

#[test]
#[ignore = "needs root and FUSE: tests/run"]
fn what_was_flushed_is_there_after_a_cut() {
    let Some(fates) = cut_again_and_again(true) else { return };
    assert_eq!((fates.torn, fates.vanished), (0, 0), "{fates:?}");
}

#[test]
#[ignore = "needs root and FUSE: tests/run"]
fn what_was_not_flushed_stays_vanishes_or_is_torn() {
    let Some(fates) = cut_again_and_again(false) else { return };
    assert!(fates.whole > 0 && fates.torn > 0 && fates.vanished > 0, "{fates:?}");
}
