//! Counters, as Prometheus reads them (its text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the time that answers take, in seconds.
const BOUNDS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

/// What one server process has done so far.
#[derive(Debug)]
pub struct Metrics {
    begun: Instant,
    /// By endpoint, method and status.
    requests: Mutex<BTreeMap<(&'static str, String, u16), u64>>,
    took: [AtomicU64; BOUNDS.len() + 1],
    took_micros: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicI64,
    failed_logins: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            begun: Instant::now(),
            requests: Mutex::default(),
            took: Default::default(),
            took_micros: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            connections: AtomicI64::new(0),
            failed_logins: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// An answer was made; `took` until its headers.
    pub fn answered(&self, kind: &'static str, method: &str, status: u16, took: Duration) {
        // Methods are whatever clients make up.
        let known = matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE");
        let method = if known { method.to_owned() } else { "other".into() };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((kind, method, status)).or_default() += 1;
        let place = BOUNDS.iter().position(|b| took.as_secs_f64() <= *b).unwrap_or(BOUNDS.len());
        self.took[place].fetch_add(1, Ordering::Relaxed);
        self.took_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn connected(&self, more: i64) {
        self.connections.fetch_add(more, Ordering::Relaxed);
    }

    pub fn failed_login(&self) {
        self.failed_logins.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut simple = |name: &str, kind: &str, help: &str, value: String| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed).to_string();
        let uptime = format!("{:.3}", self.begun.elapsed().as_secs_f64());
        simple("isles_registry_uptime_seconds", "gauge", "Time since this process began.", uptime);
        simple("isles_registry_sent_bytes_total", "counter", "Bytes of bodies sent.", count(&self.sent));
        simple(
            "isles_registry_received_bytes_total",
            "counter",
            "Bytes of bodies received.",
            count(&self.received),
        );
        let connections = self.connections.load(Ordering::Relaxed).to_string();
        simple("isles_registry_connections", "gauge", "Connections that are open.", connections);
        let failed = count(&self.failed_logins);
        simple(
            "isles_registry_failed_logins_total",
            "counter",
            "Logins with a wrong name or password.",
            failed,
        );
        out.push_str(
            "# HELP isles_registry_requests_total Answers.\n# TYPE isles_registry_requests_total counter\n",
        );
        for ((kind, method, status), n) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            let _ = writeln!(
                out,
                "isles_registry_requests_total{{endpoint=\"{kind}\",method=\"{method}\",status=\"{status}\"}} {n}"
            );
        }
        let name = "isles_registry_answer_seconds";
        let _ = writeln!(out, "# HELP {name} Time until the headers of an answer.\n# TYPE {name} histogram");
        let mut sum = 0;
        for (bound, n) in BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]).zip(&self.took) {
            sum += n.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let seconds = self.took_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.answered("blob", "GET", 200, Duration::from_millis(3));
        metrics.answered("blob", "GET", 200, Duration::from_secs(600));
        metrics.answered("blob", "BREW\"", 405, Duration::ZERO);
        metrics.sent(7);
        let text = metrics.text();
        for line in [
            "isles_registry_requests_total{endpoint=\"blob\",method=\"GET\",status=\"200\"} 2",
            "isles_registry_requests_total{endpoint=\"blob\",method=\"other\",status=\"405\"} 1",
            "isles_registry_answer_seconds_bucket{le=\"0.001\"} 1",
            "isles_registry_answer_seconds_bucket{le=\"0.005\"} 2",
            "isles_registry_answer_seconds_bucket{le=\"+Inf\"} 3",
            "isles_registry_answer_seconds_count 3",
            "isles_registry_sent_bytes_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
        }
    }
}
