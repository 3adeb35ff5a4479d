//! The machine of the measurements, and how busy it was.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vpnd_tests::TICK;

/// What a reader needs to place the figures.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
}

impl Machine {
    /// The one this runs on; what it does not tell is called unknown.
    pub(crate) fn here() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        let processors = fs::read_to_string("/proc/cpuinfo");
        let unknown = || "unknown".to_owned();
        Self {
            kernel: kernel.map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            processor: processors.ok().and_then(|text| model(&text)).unwrap_or_else(unknown),
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "kernel": self.kernel, "processor": self.processor, "cores": self.cores })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, processor, cores } = self;
        write!(f, "Linux {kernel}, {processor}, {cores} cores")
    }
}

/// Processes that wanted a processor in the last minute, on average.
pub(crate) fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Time that all processors together spent on anything since the start: processes, the kernel's
/// work for them, and interrupts.
///
/// # Errors
/// When `/proc/stat` is not as it always was.
pub(crate) fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&text).context("no line for all processors in /proc/stat")?;
    Ok(Duration::from_secs_f64(TICK.as_secs_f64() * ticks as f64))
}

/// Of `cpu user nice system idle iowait irq softirq steal …`; what another machine took is not
/// ours, and guests are in `user` already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

fn model(processors: &str) -> Option<String> {
    let line = processors.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let stat = "cpu  10 1 20 5000 300 2 3 99 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(36));
        assert_eq!(busy_ticks("cpu0 1 2 3"), None);
    }

    #[test]
    fn the_model_is_what_the_kernel_calls_it() {
        assert_eq!(model("processor : 0\nmodel name\t: A B: C\n"), Some("A B: C".to_owned()));
        assert_eq!(model("Hardware : x\n"), None);
    }
}
