//! What the demo shows while it runs: one screen drawn over itself on a terminal, a line per phase elsewhere.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// Columns of the bar.
const BAR_WIDTH: usize = 40;

/// Everything on the screen at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) elapsed: Duration,
    pub(super) duration: Duration,
    /// What happens now, as a sentence.
    pub(super) phase: &'static str,
    pub(super) kafka_up: bool,
    /// The agent's process while it runs.
    pub(super) agent_pid: Option<u32>,
    /// Name, sent and acknowledged of each load.
    pub(super) loads: Vec<(&'static str, u64, u64)>,
    /// Records in the agent that Kafka does not have, where the agent says so.
    pub(super) backlog: Option<u64>,
    /// Records that Kafka has.
    pub(super) in_kafka: u64,
}

/// Standard output, or standard error where the output is for a program.
pub(super) struct Screen {
    out: Box<dyn Write>,
    is_terminal: bool,
    /// Lines of the last drawing, to draw over.
    drawn: usize,
    phase: &'static str,
    last: Option<Snapshot>,
}

impl Screen {
    /// On standard error where standard output is for a program.
    pub(super) fn new(json: bool) -> Self {
        let (out, is_terminal): (Box<dyn Write>, bool) = if json {
            (Box::new(io::stderr()), io::stderr().is_terminal())
        } else {
            (Box::new(io::stdout()), io::stdout().is_terminal())
        };
        Self { out, is_terminal, drawn: 0, phase: "", last: None }
    }

    /// Shows `now`. Nobody looking is no reason to stop: errors of the output are ignored.
    pub(super) fn show(&mut self, now: Snapshot) {
        let text = if self.is_terminal {
            let text = draw(&now, self.last.as_ref());
            let over = match self.drawn {
                0 => String::new(),
                lines => format!("\x1b[{lines}A\x1b[J"),
            };
            self.drawn = text.lines().count();
            over + &text
        } else if now.phase != self.phase {
            format!("{:5.1} s  {}\n", now.elapsed.as_secs_f64(), now.phase)
        } else {
            String::new()
        };
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        self.phase = now.phase;
        self.last = Some(now);
    }
}

fn draw(now: &Snapshot, last: Option<&Snapshot>) -> String {
    let mut text = String::new();
    let share = now.elapsed.as_secs_f64() / now.duration.as_secs_f64().max(f64::MIN_POSITIVE);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    let filled = ((share * BAR_WIDTH as f64) as usize).min(BAR_WIDTH);
    let elapsed = now.elapsed.as_secs_f64();
    let state = |up: bool| if up { "\x1b[32mup\x1b[0m  " } else { "\x1b[31mdown\x1b[0m" };
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "[{}{}] {elapsed:.1} of {:.0} s",
        "#".repeat(filled),
        "-".repeat(BAR_WIDTH - filled),
        now.duration.as_secs_f64()
    );
    let _ = writeln!(text, "\x1b[1m{}\x1b[0m\n", now.phase);
    let agent = now.agent_pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let _ =
        writeln!(text, "Kafka {}   agent {}{agent}\n", state(now.kafka_up), state(now.agent_pid.is_some()));
    let _ = writeln!(text, "{:24} {:>10} {:>14} {:>10}", "", "sent", "acknowledged", "a second");
    let mut total = (0, 0);
    for (i, (name, sent, acknowledged)) in now.loads.iter().enumerate() {
        total = (total.0 + sent, total.1 + acknowledged);
        let rate = last.and_then(|last| {
            let seconds = (now.elapsed.checked_sub(last.elapsed)?).as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            let more = acknowledged.checked_sub(last.loads.get(i)?.2)? as f64;
            (seconds > 0.0).then(|| more / seconds)
        });
        let rate = rate.unwrap_or(0.0);
        let _ = writeln!(text, "{name:24} {sent:>10} {acknowledged:>14} {rate:>10.0}");
    }
    let _ = writeln!(text, "{:24} {:>10} {:>14}\n", "in total", total.0, total.1);
    let _ = writeln!(text, "{:24} {:>10}", "in Kafka", now.in_kafka);
    let backlog = now.backlog.map_or_else(|| "?".to_owned(), |records| records.to_string());
    let _ = writeln!(text, "{:24} {backlog:>10}", "waiting in the agent");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_what_is_up_and_how_far_everything_is() {
        let last = Snapshot {
            elapsed: Duration::from_secs(10),
            duration: Duration::from_secs(30),
            loads: vec![("rooms", 900, 800), ("vehicles", 100, 100)],
            ..Snapshot::default()
        };
        let now = Snapshot {
            elapsed: Duration::from_secs(12),
            kafka_up: false,
            agent_pid: Some(4711),
            loads: vec![("rooms", 1_100, 1_000), ("vehicles", 120, 110)],
            backlog: Some(333),
            ..last.clone()
        };
        let text = draw(&now, Some(&last));
        for part in ["12.0 of 30 s", "Kafka \x1b[31mdown", "process 4711", "1220           1110", "333"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let rooms = text.lines().find(|line| line.starts_with("rooms")).unwrap();
        assert_eq!(rooms.split_whitespace().collect::<Vec<_>>(), ["rooms", "1100", "1000", "100"]);
    }
}
