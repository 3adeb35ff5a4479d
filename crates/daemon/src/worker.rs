//! Threads for work that may block: looking up names, writing to a disk. Each thread is started at the start of
//! the tunnel, so that a process limit that is reached later does not prevent the work.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use crate::privilege;

/// A thread that runs one job after the other. It ends with the process, or when every handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Worker(mpsc::Sender<Job>);

type Job = Box<dyn FnOnce() + Send>;

impl Worker {
    /// Starts the thread, which gives up rights with `confine` first. Call this after the privileges are
    /// dropped, because each thread has its own.
    ///
    /// # Errors
    ///
    /// If the kernel cannot start a thread, and if `confine` fails.
    pub(crate) fn start(
        name: &str,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (give, jobs) = mpsc::channel::<Job>();
        let (tell, confined) = mpsc::sync_channel(1);
        let work = move || {
            privilege::begin_thread();
            let result = confine();
            let failed = result.is_err();
            if tell.send(result).is_err() || failed {
                return;
            }
            for job in jobs {
                // If a job panics, its caller gets an error, and the thread goes on with the next job.
                let _panicked = catch_unwind(AssertUnwindSafe(job));
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(work)?;
        confined.recv().unwrap_or_else(|_panicked| Err(lost()))?;
        Ok(Self(give))
    }

    /// Starts another thread from this one, which has the same rights. The calling thread may have fewer.
    ///
    /// # Errors
    ///
    /// If the kernel cannot start a thread.
    pub(crate) async fn another(&self, name: &'static str) -> io::Result<Self> {
        self.run(move || Self::start(name, || Ok(()))).await.flatten()
    }

    /// Runs `job` on the thread, and waits for its result. If the caller stops waiting before the job starts,
    /// the job is skipped.
    ///
    /// # Errors
    ///
    /// If the job panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            if !done.is_closed() {
                drop(done.send(job()));
            }
        });
        self.0.send(job).map_err(|_gone| lost())?;
        result.await.map_err(|_panicked| lost())
    }
}

fn lost() -> io::Error {
    io::Error::other("the work was given up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_order_and_a_panic_ends_only_its_own() {
        let worker = Worker::start("test", || Ok(())).unwrap();
        assert_eq!(worker.run(|| 7).await.unwrap(), 7);
        let name = worker.run(|| thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(name.as_deref(), Some("test"));
        assert!(worker.run(|| panic!("for the test")).await.is_err());
        assert_eq!(worker.run(|| 8).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_thread_that_cannot_be_confined_does_no_work() {
        let refused = Worker::start("test", || Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn a_thread_is_started_by_another() {
        let first = Worker::start("first", || Ok(())).unwrap();
        let second = first.another("second").await.unwrap();
        drop(first);
        let name = second.run(|| thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(name.as_deref(), Some("second"));
    }

    #[tokio::test]
    async fn a_job_that_nobody_waits_for_is_left_out() {
        let worker = Worker::start("test", || Ok(())).unwrap();
        let (begin, begun) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run(move || begun.recv()).await }
        });
        tokio::task::yield_now().await;
        let (tell, told) = mpsc::channel::<()>();
        let second = worker.run(move || tell.send(()));
        assert!(tokio::time::timeout(std::time::Duration::ZERO, second).await.is_err());
        begin.send(()).unwrap();
        let _first = first.await.unwrap().unwrap();
        worker.run(|| ()).await.unwrap();
        assert!(told.try_recv().is_err());
    }
}
