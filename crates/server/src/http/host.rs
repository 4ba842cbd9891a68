//! The host itself: its domains, checks, counters and versions.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use vmkeep_api::body::{DomainView, VersionAnswer, VmPhase, VmStats};
use vmkeep_store::keys;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::call::Call;
use super::handlers::{Answer, no_handler, revision};
use super::relay::{ask_node, to_node};
use super::respond;
use crate::app;
use crate::cache::Wanted;
use crate::view::Sight;

pub async fn host(call: Call) -> Answer {
    let node = call.server.node.clone();
    match call.route.id {
        "domain.list" => {
            let revision = revision(&call).await?;
            let mut rows: Vec<DomainView> = ask_node(&call, &node, "/n/domains").await?;
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            app::vm_adopt::mark_lost(call.store(), &mut rows).await?;
            respond::page(&call, rows, revision, |domain| domain.name.clone()).await
        }
        "host.check" => {
            let node = call.query("node").map(str::parse).transpose().map_err(|e| Error::invalid(format!("node: {e}")))?.unwrap_or(node);
            to_node(call, &node, "/n/host/check").await
        }
        "stats.list" => stats(&call).await,
        "version" => {
            let store = call.store().id().0;
            let answer = VersionAnswer { version: env!("CARGO_PKG_VERSION").into(), node, store, level: keys::LEVEL_NOW };
            Ok(respond::json(&answer))
        }
        "schema" => Ok(respond::json(&vmkeep_types::explain::schema())),
        "openapi" => Ok(respond::json(&vmkeep_api::openapi::document())),
        "metrics" => metrics(call, &node).await,
        _ => Err(no_handler(&call)),
    }
}

/// Nodes that are asked at once.
const ASKED_AT_ONCE: usize = 64;
/// A node that needs longer is left out: the others' counters would be old by then.
const STATS_PATIENCE: Duration = Duration::from_secs(3);

/// The node knows uids; names are the control plane's.
async fn stats(call: &Call) -> Answer {
    let revision = revision(call).await?;
    let nodes = app::node::heard_of(call.store()).await?;
    // One that does not answer hides no others.
    let asks: Vec<_> =
        nodes.iter().map(|node| tokio::time::timeout(STATS_PATIENCE, ask_node::<Vec<VmStats>>(call, node, "/n/stats"))).collect();
    let told: Vec<_> = stream::iter(asks).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let names = call.server.cache.names(call.store(), &call.ask.project).await?;
    let all = told.into_iter().filter_map(|answer| answer.ok()?.ok()).flatten();
    let mut named: Vec<VmStats> = all.filter_map(|stats| Some(VmStats { name: names.get(&stats.id)?.clone(), ..stats })).collect();
    named.sort_by(|a, b| a.name.cmp(&b.name));
    respond::page(call, named, revision, |stats| stats.name.to_string()).await
}

/// `running`, as the API writes it.
fn phase_word(phase: VmPhase) -> String {
    serde_json::to_value(phase).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

async fn metrics(call: Call, node: &Name) -> Answer {
    use http_body_util::BodyExt;
    let server = call.server.clone();
    let mut phases: BTreeMap<String, i64> = BTreeMap::new();
    let everything = Wanted { labels: Vec::new(), after: None, limit: usize::MAX, sight: Sight::Veiled };
    for row in &server.cache.list(call.store(), &call.ask.project, &everything).await?.rows {
        *phases.entry(phase_word(row.phase)).or_default() += 1;
    }
    server.metrics.note_ha(&app::ha::numbers(call.store()).await?);
    let own = server.metrics.text(revision(&call).await?, phases);
    let request = axum::extract::Request::builder().uri("/n/metrics").body(axum::body::Body::empty()).expect("a fixed path");
    let theirs = server.gate.call(node, request).await;
    let theirs = if theirs.status().is_success() {
        let collected =
            theirs.into_body().collect().await.map_err(|e| Error::new(Code::Unavailable, format!("the node's metrics broke off: {e}")))?;
        String::from_utf8_lossy(&collected.to_bytes()).into_owned()
    } else {
        String::new()
    };
    let own = own.strip_suffix("# EOF\n").unwrap_or(&own);
    let theirs = theirs.strip_suffix("# EOF\n").unwrap_or(&theirs);
    Ok(respond::text("application/openmetrics-text; version=1.0.0; charset=utf-8", format!("{own}{theirs}# EOF\n")))
}
