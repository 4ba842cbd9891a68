//! The embedded store: durable commits alone and together, reads, watch latency.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn};

use crate::report::{Report, Samples};

/// A VM's record is about as large.
const VALUE_BYTES: usize = 2048;

/// Keys of one writer, written again and again, as a host's own are.
const KEYS: usize = 500;

#[derive(clap::Args)]
pub struct Args {
    /// Folder for the store's file: on the disk whose fsync counts.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Writes of each measurement.
    #[arg(long, default_value_t = 5_000)]
    writes: usize,
    /// Tasks that write at once in the second measurement.
    #[arg(long, default_value_t = 64)]
    writers: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let dir = tempfile::tempdir_in(&args.dir).with_context(|| format!("cannot make a folder in {}", args.dir.display()))?;
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&dir.path().join("store.db"))?);
    let mut report = Report::default();
    report.samples("commit, one writer", commits(&store, args.writes, 1).await?);
    report.samples(format!("commit, {} writers", args.writers), commits(&store, args.writes, args.writers.max(1)).await?);
    report.samples("get", gets(&store, args.writes * 4).await?);
    for size in [100, 1000] {
        report.samples(format!("list of {size}"), lists(&store, size).await?);
    }
    report.samples("write to watch event", watch(&store, args.writes.min(2000)).await?);
    Ok(report)
}

fn put(key: String) -> Txn {
    Txn::default().then(Op::Put(key, vec![b'x'; VALUE_BYTES]))
}

async fn commits(store: &Arc<dyn Store>, writes: usize, writers: usize) -> anyhow::Result<Samples> {
    let each = writes.div_ceil(writers).max(1);
    let begin = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(each);
                for n in 0..each {
                    let begin = Instant::now();
                    store.txn(put(format!("commit/{writer}/{}", n % KEYS))).await?;
                    latencies.push(begin.elapsed());
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.context("the writer failed")??);
    }
    Ok(Samples::new(latencies, begin.elapsed()))
}

async fn gets(store: &Arc<dyn Store>, reads: usize) -> anyhow::Result<Samples> {
    let kept = store.list("commit/0/").await?.items.len();
    repeat(reads.max(1), async |n| {
        let found = store.get(&format!("commit/0/{}", n % kept)).await?;
        anyhow::ensure!(found.is_some(), "what was written is there");
        Ok(())
    })
    .await
}

async fn lists(store: &Arc<dyn Store>, size: usize) -> anyhow::Result<Samples> {
    let prefix = format!("list/{size}/");
    for n in 0..size {
        store.txn(put(format!("{prefix}{n:05}"))).await?;
    }
    repeat(500, async |_| {
        let listing = store.list(&prefix).await?;
        anyhow::ensure!(listing.items.len() == size, "the whole list");
        Ok(())
    })
    .await
}

/// From the call of a write to the moment that a watcher has it: the commit is in between.
async fn watch(store: &Arc<dyn Store>, writes: usize) -> anyhow::Result<Samples> {
    let from = store.revision().await?.next();
    let mut events = store.watch("watch/", from).await?;
    repeat(writes.max(1), async |n| {
        store.txn(put(format!("watch/{}", n % 100))).await?;
        events.recv().await.context("the watch ended")??;
        Ok(())
    })
    .await
}

async fn repeat(count: usize, mut call: impl AsyncFnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<Samples> {
    let mut latencies: Vec<Duration> = Vec::with_capacity(count);
    let all = Instant::now();
    for n in 0..count {
        let begin = Instant::now();
        call(n).await?;
        latencies.push(begin.elapsed());
    }
    Ok(Samples::new(latencies, all.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn measures_every_row() {
        let dir = tempfile::tempdir().expect("a folder");
        let report = run(&Args { dir: dir.path().to_owned(), writes: 20, writers: 4 }).await.expect("numbers");
        let text = report.show(crate::report::Format::Text);
        let rows: Vec<&str> = text.lines().map(|line| line.split("  ").next().expect("a name")).collect();
        assert_eq!(
            rows,
            ["commit, one writer", "commit, 4 writers", "get", "list of 100", "list of 1000", "write to watch event"],
            "{text}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "nothing stays behind");
    }
}
