//! Handles panics of all threads and tasks. The runtime ends only the task that panicked, so an object that it
//! maintained, such as the kill switch, would no longer be maintained while everything else continues. So a
//! panic ends the tunnel with an error, and a service manager starts it again.

use std::panic::{self, PanicHookInfo};

use tokio::sync::watch;

/// The first panic of any thread or task of the process.
#[derive(Debug)]
pub(crate) struct Panics(watch::Receiver<Option<String>>);

impl Panics {
    /// Replaces the standard library's panic hook: logs each panic, and stores the first one.
    pub(crate) fn watch() -> Self {
        let (first, seen) = watch::channel(None);
        panic::set_hook(Box::new(move |panic| {
            let text = describe(panic);
            tracing::error!("{text}");
            first.send_if_modified(|known| {
                let is_first = known.is_none();
                known.get_or_insert(text);
                is_first
            });
        }));
        Self(seen)
    }

    /// Waits for the first panic.
    pub(crate) async fn seen(&mut self) -> String {
        match self.0.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            // Another hook has replaced this one.
            Err(_) => std::future::pending().await,
        }
    }
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let text = panic.payload().downcast_ref::<&str>().copied();
    let formatted = panic.payload().downcast_ref::<String>().map(String::as_str);
    let message = text.or(formatted).unwrap_or("a panic without a message");
    let place = panic.location().map_or_else(String::new, |at| format!(" at {at}"));
    format!("thread {} panicked{place}: {message}", thread.name().unwrap_or("without a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_task_that_nobody_waits_for_is_seen() {
        let mut panics = Panics::watch();
        let task = tokio::spawn(async { panic!("for the test") });
        let text = panics.seen().await;
        drop(panic::take_hook());
        assert!(text.contains("panics.rs") && text.ends_with(": for the test"), "{text}");
        assert!(task.await.is_err());
    }
}
