//! Small file systems, to be filled and broken.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use crate::drive::{self, Drive};
use crate::{note, process};

/// A file system of its own, gone when dropped or when the test process ends.
pub struct Disk {
    mount_point: PathBuf,
    /// The image of an ext4.
    image: Option<PathBuf>,
    /// What the image lies on, where that is one that loses writes.
    drive: Option<Drive>,
    /// Waits for the end of this pipe, then clears up.
    _janitor: ChildStdin,
}

impl Disk {
    /// A file system in memory of `mebibytes`, or `None` with a note where nothing can be mounted.
    pub fn tmpfs(mebibytes: u32) -> Option<Self> {
        let disk = Self::prepare();
        let mount_point = disk.mount_point.clone();
        let size = format!("size={mebibytes}m");
        disk.mounted(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(mount_point))
    }

    /// An ext4 of `mebibytes` in a file, with no blocks kept for root; or `None` with a note where nothing can be mounted.
    pub fn ext4(mebibytes: u32) -> Option<Self> {
        let disk = Self::prepare();
        let image = disk.mount_point.with_file_name("image");
        let file = File::create(&image).expect("our directory is writable");
        file.set_len(u64::from(mebibytes) << 20).expect("a file with a hole takes no space");
        disk.formatted(image)
    }

    /// An ext4 of `mebibytes` on a [`Drive`] with a volatile cache; or `None` with a note where there is no FUSE or nothing can be
    /// mounted.
    pub fn volatile(mebibytes: u32) -> Option<Self> {
        let mut disk = Self::prepare();
        let directory = disk.mount_point.with_file_name("drive");
        std::fs::create_dir(&directory).expect("our directory is writable");
        match Drive::mount(&directory, (mebibytes as usize) << 20) {
            Ok(drive) => disk.drive = Some(drive),
            Err(cause) => {
                note(&format!("skipped: needs FUSE and the right to mount a file system: {cause}"));
                return None;
            }
        }
        disk.formatted(directory.join(drive::IMAGE))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// What a [`volatile`](Self::volatile) disk lies on.
    pub fn drive(&self) -> &Drive {
        self.drive.as_ref().expect("it was made with a drive")
    }

    /// Takes all the space that is left, as another process would, until what is returned is dropped.
    pub fn fill(&self) -> Filler {
        let filler = Filler(self.mount_point.join("filler"));
        filler.fill_up();
        filler
    }

    /// Makes an ext4 do what it does after an error of its device: it goes read-only, for as long as it is mounted.
    pub fn abort(&self) {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.mount_point));
    }

    /// Cuts the power of an ext4: what was not synced is gone, and nothing can be read or written until it is mounted again.
    pub fn cut_power(&self) {
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h); the journal does not get what is under way.
        let script = "import fcntl, os, struct, sys\n\
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", script]).arg(&self.mount_point));
    }

    /// Mounts an ext4 anew that nobody uses any more, after the check that a boot does: it mends what needs no hand.
    #[track_caller]
    pub fn mount_again(&self) {
        run(Command::new("umount").arg(&self.mount_point));
        let output = Command::new("/usr/sbin/e2fsck").arg("-p").args(&self.image).output();
        let output = output.expect("e2fsprogs are on every Debian");
        // 1: mended.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        run(&mut self.mount_image());
    }

    /// Makes everything that is opened below it read-only until what is returned is dropped; what is open stays as it is.
    pub fn write_protect(&self) -> Protection {
        let path = self.mount_point.as_path();
        run(Command::new("mount").args(["-o", "bind,ro"]).args([path, path]));
        Protection(path.to_owned())
    }

    fn prepare() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("wayside-disk-")
            .tempdir()
            .expect("the directory for temporary files is writable")
            .keep();
        let mount_point = directory.join("disk");
        std::fs::create_dir(&mount_point).expect("our directory is writable");
        let script = "trap '' INT TERM; read -r _; umount --lazy \"$1/disk\" \"$1/drive\"; rm -rf --one-file-system \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor"]).arg(&directory).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let janitor = process::spawn(command).stdin.take().expect("it was asked for a pipe");
        Self { mount_point, image: None, drive: None, _janitor: janitor }
    }

    fn formatted(mut self, image: PathBuf) -> Option<Self> {
        // All at once: else the kernel would do the rest beside the agent.
        let options = ["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run(Command::new("/usr/sbin/mkfs.ext4").args(options).arg(&image));
        self.image = Some(image);
        let mount = &mut self.mount_image();
        self.mounted(mount)
    }

    fn mount_image(&self) -> Command {
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).args(&self.image).arg(&self.mount_point);
        command
    }

    fn mounted(self, mount: &mut Command) -> Option<Self> {
        let output = mount.output().expect("`mount` of util-linux can be started");
        if output.status.success() {
            return Some(self);
        }
        let cause = String::from_utf8_lossy(&output.stderr);
        note(&format!("skipped: needs the right to mount a file system: {}", cause.trim()));
        None
    }
}

/// Another process's file.
pub struct Filler(PathBuf);

impl Filler {
    /// Takes what has become free meanwhile.
    pub fn fill_up(&self) {
        let mut file =
            File::options().create(true).append(true).open(&self.0).expect("an empty file always fits");
        for bytes in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
        // Ext4 finds some room only when it must.
        file.sync_all().ok();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("it was made");
    }
}

/// See [`Disk::write_protect`].
pub struct Protection(PathBuf);

impl Drop for Protection {
    fn drop(&mut self) {
        run(Command::new("umount").args(["--lazy"]).arg(&self.0));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("util-linux and e2fsprogs are on every Debian");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
