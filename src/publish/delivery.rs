//! Bounds one delivery of log lines to a platform that appends what it gets.

/// Most bytes of one delivery to a platform that appends: proxies take a megabyte by default, and JSON makes text longer.
const DELIVERY_MAX: usize = 400 * 1024;
/// The line that stands in place of lines that were left out of a delivery.
const LEFT_OUT: &str = "[earlier lines are left out]";

/// The newest lines that fit into one delivery. Lines that do not are left out for good: an endless retry of what a proxy
/// finds too large would keep back everything that comes after.
pub(super) fn within_bounds(mut lines: Vec<String>) -> Vec<String> {
    let mut bytes = 0;
    let fits = |line: &&String| {
        bytes += line.len() + 1;
        bytes <= DELIVERY_MAX
    };
    let kept = lines.iter().rev().take_while(fits).count();
    if kept < lines.len() {
        lines.drain(..lines.len() - kept);
        lines.insert(0, LEFT_OUT.to_owned());
    }
    lines
}
