//! A drive with a volatile cache: what was not flushed when the power fails stays or vanishes, each write for itself.
//!
//! That is the honest model of an SD card. The drive is a file that this process serves by FUSE; a loop device is on it, and on that
//! a file system. A flush of the block device arrives here as `fsync`. Nothing is between the two: the file is opened with
//! `FOPEN_DIRECT_IO`, so that it has no page cache, the loop device keeps nothing itself, and each request of the block layer is a
//! WRITE here before it is complete, or some where it is larger than FUSE takes. (Direct I/O of the loop device would go around the
//! same page cache.) A write that must be durable for itself (FUA) is one that the kernel lets a flush follow, since a loop device
//! knows none.
//!
//! The power fails while a write is on its way. No answer goes out any more from then on; whoever writes is frozen; and what
//! opened the file before the cut gets errors for ever. What comes after it opens the file again.
//!
//! No thread of this process may do I/O on what lies on the drive: if the process were killed, it would wait for the drive, and
//! the drive for it. Without such a thread the kernel takes the file from under the loop device, and nobody hangs.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use crate::PATIENCE;

/// The name of the file that is the drive.
pub const IMAGE: &str = "image";

/// What a drive writes as a whole.
const SECTOR_BYTES: usize = 512;

const IMAGE_INO: INodeNo = INodeNo(2);

/// Nothing changes but what is in the file.
const TTL: Duration = Duration::from_secs(3600);

/// Served for as long as it is mounted.
pub struct Drive {
    shared: Arc<Shared>,
    _session: BackgroundSession,
}

impl Drive {
    /// Mounts a directory with the drive in it.
    ///
    /// # Errors
    /// Where FUSE is missing, or the right to mount.
    pub fn mount(directory: &Path, bytes: usize) -> io::Result<Self> {
        let state = State { cache: Cache::new(bytes), cuts: 0, writes_left: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), turn: Condvar::new(), bytes });
        let session = fuser::spawn_mount(Server(shared.clone()), directory, &Config::default())?;
        Ok(Self { shared, _session: session })
    }

    /// Cuts the power when as many `writes` more have come, the last of which is not answered. `freeze` stops whoever writes: it
    /// is not to see errors, which no power cut shows.
    ///
    /// # Panics
    /// When so many writes do not come.
    pub fn cut_power(&self, writes: u32, chance: &mut SmallRng, freeze: impl FnOnce()) {
        let mut state = self.shared.lock();
        state.writes_left = Some(writes.max(1));
        let waited = self.shared.turn.wait_timeout_while(state, PATIENCE, |state| !state.is_held());
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            state.writes_left = None;
            panic!("waited {PATIENCE:?} in vain: {writes} writes to the drive");
        }
        drop(state);
        freeze();
        let mut state = self.shared.lock();
        state.cache.lose(chance);
        state.cuts += 1;
        state.writes_left = None;
        self.shared.turn.notify_all();
    }
}

struct Shared {
    /// Locked for the time of one request, and by [`Drive::cut_power`].
    state: Mutex<State>,
    /// The power fails, or has failed.
    turn: Condvar,
    bytes: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, size, nlink) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0, 2),
            _ => (FileType::RegularFile, self.bytes as u64, 1),
        };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

struct State {
    cache: Cache,
    /// How often the power was cut. Who opened the file has the number of that time.
    cuts: u64,
    /// Until the power fails.
    writes_left: Option<u32>,
}

impl State {
    /// Whether the power fails: nothing is answered.
    fn is_held(&self) -> bool {
        self.writes_left == Some(0)
    }

    /// What there is for one who has opened the file since the last cut.
    fn cache(&mut self, handle: FileHandle) -> Option<&mut Cache> {
        (handle.0 == self.cuts).then_some(&mut self.cache)
    }
}

/// What the drive holds.
struct Cache {
    /// What a read returns.
    live: Vec<u8>,
    /// What no cut takes.
    flushed: Vec<u8>,
    /// What was written since the last flush, place and bytes, in order.
    unflushed: Vec<(usize, Vec<u8>)>,
}

impl Cache {
    fn new(bytes: usize) -> Self {
        Self { live: vec![0; bytes], flushed: vec![0; bytes], unflushed: Vec::new() }
    }

    fn read(&self, place: usize, bytes: usize) -> &[u8] {
        let from = &self.live[place.min(self.live.len())..];
        &from[..bytes.min(from.len())]
    }

    /// # Panics
    /// Behind the end, where no loop device writes.
    fn write(&mut self, place: usize, bytes: &[u8]) {
        self.live[place..][..bytes.len()].copy_from_slice(bytes);
        self.unflushed.push((place, bytes.to_vec()));
    }

    fn flush(&mut self) {
        for (place, bytes) in self.unflushed.drain(..) {
            self.flushed[place..][..bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// Of what was not flushed each write stays, vanishes, or loses some of its sectors. A later one may stay where an earlier one
    /// does not.
    fn lose(&mut self, chance: &mut SmallRng) {
        for (place, bytes) in &self.unflushed {
            let stays = *[0.0, 0.5, 1.0].choose(chance).expect("there are some");
            for (sector, place) in bytes.chunks(SECTOR_BYTES).zip((*place..).step_by(SECTOR_BYTES)) {
                if chance.random_bool(stays) {
                    self.flushed[place..][..sector.len()].copy_from_slice(sector);
                }
            }
        }
        for (place, bytes) in self.unflushed.drain(..) {
            let there = place..place + bytes.len();
            self.live[there.clone()].copy_from_slice(&self.flushed[there]);
        }
    }
}

/// Where in memory a place of the drive is.
fn within(offset: u64) -> usize {
    offset.try_into().expect("the drive is in memory")
}

/// What the kernel asks for, one request at a time.
struct Server(Arc<Shared>);

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == IMAGE {
            reply.entry(&TTL, &self.0.attributes(IMAGE_INO), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.0.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.0.lock().cuts), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().cache(handle) {
            Some(cache) => reply.data(cache.read(within(offset), size as usize)),
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let Some(cache) = state.cache(handle) else { return reply.error(Errno::EIO) };
        cache.write(within(offset), data);
        state.writes_left = state.writes_left.map(|writes| writes.saturating_sub(1));
        if state.is_held() {
            self.0.turn.notify_all();
            // No longer than the one who holds it waits: a test that fails leaves nobody hanging.
            let waited = self.0.turn.wait_timeout_while(state, PATIENCE, |state| state.is_held());
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = after;
            if timeout.timed_out() {
                state.writes_left = None;
            }
        }
        match state.cache(handle) {
            Some(_) => reply.written(data.len().try_into().expect("the kernel's own length, a u32")),
            None => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.lock().cache(handle) {
            Some(cache) => {
                cache.flush();
                reply.ok();
            }
            None => reply.error(Errno::EIO),
        }
    }
}
