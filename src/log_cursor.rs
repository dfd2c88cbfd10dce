//! Notes how far a workload's log has been delivered to a platform that appends lines. Pure.
//!
//! A line is identified by the time that the engine noted for it, and lines of the same time by their number. This also
//! works after the log was rotated. The lines of another container have another source.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The place of the last line that was delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCursor {
    /// The source of the log: the id of a container or the uid of a pod.
    pub source: String,
    /// The time that the engine noted for the last line.
    pub at: Timestamp,
    /// How many lines of exactly that time were delivered; 0 when there was no line at all.
    pub lines: u32,
}

impl LogCursor {
    /// A cursor before the first line of this source, so that everything that the source writes is new.
    #[must_use]
    pub fn before_any_line_of(source: &str) -> Self {
        Self { source: source.to_owned(), at: Timestamp::UNIX_EPOCH, lines: 0 }
    }
}

/// The part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPart<'a> {
    /// The last lines, whether or not they were delivered before.
    Last(u32),
    /// The lines that were not delivered yet.
    New {
        /// Where the last delivery ended. `None` when there was none.
        after: Option<&'a LogCursor>,
        /// How many lines a first delivery has at most. The newest ones are taken.
        first: u32,
        /// How many lines each later delivery has at most. The newest ones are taken.
        most: u32,
    },
}

/// Where to begin in the log of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// At the last lines, of which it has this many.
    Last(u32),
    /// Behind the cursor, with at most this many lines.
    Behind(&'a LogCursor, u32),
}

impl<'a> LogPart<'a> {
    /// Where to begin in the log of `source`. When the cursor is about another source, nothing of this one was
    /// delivered yet.
    #[must_use]
    pub fn start(self, source: &str) -> Start<'a> {
        match self {
            Self::Last(lines) => Start::Last(lines),
            Self::New { after: None, first, .. } => Start::Last(first),
            Self::New { after: Some(cursor), most, .. } if cursor.source == source => Start::Behind(cursor, most),
            Self::New { most, .. } => Start::Last(most),
        }
    }

    /// Whether the engine has to send the time of each line.
    #[must_use]
    pub fn needs_times(self) -> bool {
        matches!(self, Self::New { .. })
    }
}

/// Finds out which lines of one source are new. It gets the times of the lines in the order of the log.
#[derive(Debug)]
pub struct Follower<'a> {
    source: &'a str,
    behind: Option<&'a LogCursor>,
    /// How many lines with the cursor's time have come so far.
    passed: u32,
    newest: Option<(Timestamp, u32)>,
    /// Whether a line has come that is as new as the cursor or newer.
    reached: bool,
}

impl<'a> Follower<'a> {
    /// A follower for a log that is read from `start`.
    #[must_use]
    pub fn new(source: &'a str, start: Start<'a>) -> Self {
        let behind = match start {
            Start::Behind(cursor, _) => Some(cursor),
            Start::Last(_) => None,
        };
        Self { source, behind, passed: 0, newest: behind.map(|cursor| (cursor.at, cursor.lines)), reached: false }
    }

    /// Takes the time of the next line and returns whether that line is new.
    pub fn is_new(&mut self, at: Timestamp) -> bool {
        if let Some(cursor) = self.behind {
            if at < cursor.at {
                return false;
            }
            self.reached = true;
            if at == cursor.at && self.passed < cursor.lines {
                self.passed += 1;
                return false;
            }
        }
        self.newest = match self.newest {
            Some((newest, lines)) if newest == at => Some((at, lines.saturating_add(1))),
            Some((newest, lines)) if newest > at => Some((newest, lines)),
            _ => Some((at, 1)),
        };
        true
    }

    /// Whether the log holds no line that is as new as the cursor. A log without new lines still has the line of the
    /// cursor. When even that one is missing, the log was emptied or the cursor is wrong.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.behind.is_some_and(|cursor| cursor.lines > 0) && !self.reached
    }

    /// The cursor behind the lines that have come. For an empty log it is the cursor before any line.
    #[must_use]
    pub fn cursor(&self) -> LogCursor {
        match self.newest {
            Some((at, lines)) => LogCursor { source: self.source.to_owned(), at, lines },
            None => LogCursor::before_any_line_of(self.source),
        }
    }
}

/// Splits a line into the time in RFC 3339 that the engine wrote before it, and the text. `None` when there is no such
/// time.
#[must_use]
pub fn split_time(line: &[u8]) -> Option<(Timestamp, &[u8])> {
    let end = line.iter().take(64).position(|byte| *byte == b' ')?;
    let (time, rest) = line.split_at(end);
    let at = std::str::from_utf8(time).ok()?.parse().ok()?;
    Some((at, rest.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Follower, LogCursor, LogPart, Start, split_time};

    fn at(nanosecond: i64) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(nanosecond)).unwrap()
    }

    /// Delivers in several passes of random sizes and gives what arrived.
    fn deliver(log: &[Timestamp], passes: &[usize]) -> Vec<usize> {
        let mut cursor: Option<LogCursor> = None;
        let mut arrived = Vec::new();
        for end in passes {
            let part = LogPart::New { after: cursor.as_ref(), first: u32::MAX, most: u32::MAX };
            let mut follower = Follower::new("c", part.start("c"));
            arrived.extend(log.iter().take(*end).enumerate().filter(|(_, at)| follower.is_new(**at)).map(|(n, _)| n));
            cursor = Some(follower.cursor());
        }
        arrived
    }

    #[test]
    fn every_line_arrives_once_however_the_passes_fall_and_however_many_share_an_instant() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut time = 0;
            let log: Vec<Timestamp> = std::iter::repeat_with(|| {
                time += i64::from(random.u8(..3) / 2);
                at(time)
            })
            .take(40)
            .collect();
            let mut passes: Vec<usize> = std::iter::repeat_with(|| random.usize(..=40)).take(6).collect();
            passes.push(40);
            passes.sort_unstable();
            assert_eq!(deliver(&log, &passes), (0..40).collect::<Vec<_>>(), "seed {seed}, passes {passes:?}");
        }
    }

    #[test]
    fn of_another_source_everything_is_new_and_of_a_first_delivery_the_last_lines() {
        let cursor = LogCursor { source: "old".to_owned(), at: at(5), lines: 1 };
        let part = LogPart::New { after: Some(&cursor), first: 3, most: 9 };
        assert_eq!(part.start("new"), Start::Last(9));
        assert_eq!(part.start("old"), Start::Behind(&cursor, 9));
        assert_eq!(LogPart::New { after: None, first: 3, most: 9 }.start("new"), Start::Last(3));
    }

    #[test]
    fn a_cursor_that_no_line_reaches_is_lost_and_one_whose_line_is_the_newest_is_not() {
        let cursor = LogCursor { source: "c".to_owned(), at: at(50), lines: 1 };
        let mut follower = Follower::new("c", Start::Behind(&cursor, 9));
        assert!(!follower.is_new(at(7)) && follower.is_lost());
        assert!(!follower.is_new(at(50)) && !follower.is_lost());
        assert_eq!(follower.cursor(), cursor);
    }

    #[test]
    fn whatever_a_log_writes_that_was_empty_at_first_is_new() {
        let empty = Follower::new("c", Start::Last(1)).cursor();
        let part = LogPart::New { after: Some(&empty), first: 1, most: 9 };
        let mut follower = Follower::new("c", part.start("c"));
        assert!(!follower.is_lost(), "nothing is missing of a log that is still empty");
        assert!(follower.is_new(at(1)) && follower.is_new(at(1)) && follower.is_new(at(2)));
    }

    #[test]
    fn the_time_is_taken_off_a_line_and_nothing_else_is_taken_for_one() {
        let (time, rest) = split_time(b"2026-03-01T12:00:00.000000001Z a line").unwrap();
        assert_eq!((time.subsec_nanosecond(), rest), (1, &b"a line"[..]));
        assert_eq!(split_time(b"2026-03-01T12:00:00+01:00 ").unwrap().1, b"");
        for line in [&b"no time"[..], b"", b"2026-03-01T12:00:00Z", b"2026-13-01T12:00:00Z x"] {
            assert!(split_time(line).is_none(), "{line:?}");
        }
    }
}
