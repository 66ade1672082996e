//! What a process has used, as the kernel counts it.

use std::time::Duration;

/// Processor time and memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Time on a processor, in the kernel and outside of it.
    pub cpu: Duration,
    /// Memory that it has now, in KiB.
    pub resident_kib: u64,
    /// The most that it ever had, in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// Of the running process `pid`.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it runs");
        let stat = read("stat");
        // Behind the name, which may have any characters: utime and stime are the 14th and 15th field, proc(5).
        let fields: Vec<&str> =
            stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(11).take(2).collect();
        let ticks: u64 = fields.iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        let status = read("status");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("of a user's process");
            line.split_whitespace().next().expect("a number").parse().expect("a number")
        };
        Self {
            cpu: Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()),
            resident_kib: kib("VmRSS:"),
            peak_kib: kib("VmHWM:"),
        }
    }
}
