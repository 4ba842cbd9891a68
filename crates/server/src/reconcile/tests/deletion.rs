//! Deletions that more nodes take part in than one transaction can name.

use vmkeep_types::order::{TaskResult, TaskState};
use vmkeep_types::record::{Caller, Role, Via};

use super::*;
use crate::app::{Ask, bootstrap, image, network, op as app_op};
use crate::reconcile::plan;
use crate::reconcile::view::Touched;

const MANY: usize = 400;
const X: NetworkId = NetworkId(uuid::Uuid::from_u128(0x10));
const IMAGE: ImageId = ImageId(uuid::Uuid::from_u128(0x11));

fn name_of(n: usize) -> Name {
    format!("h{n}").parse().expect("a name")
}

fn ask() -> Ask {
    let caller = Caller { name: "root".into(), role: Role::Admin, via: Via::Uid(0), projects: None };
    let (if_match, repeat) = (None, None);
    Ask { project: project(), caller, if_match, repeat, admission: Default::default(), foreign: BTreeSet::new() }
}

/// A network and an image that all of so many nodes have.
async fn many() -> EmbeddedStore {
    let store = EmbeddedStore::in_memory().expect("memory");
    bootstrap(&store, "/pool", false).await.expect("a new store");
    let nodes: Vec<Name> = (0..MANY).map(name_of).collect();
    for part in nodes.chunks(100) {
        let joined = part.iter().map(|node| Op::Put(keys::joined(node), Vec::new())).collect();
        store.txn(Txn { then: joined, ..Txn::default() }).await.expect("written");
    }
    let network = serde_json::json!({"id": X, "project": "default", "spec": {"name": "x"}, "nodes": nodes, "created_at": now()});
    let spec = serde_json::json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}});
    let facts = serde_json::json!({"kind": "disk", "virtual_size": "1G", "stored_size": "1G", "sha256": null, "firmware": "auto", "os": "linux",
        "os_name": null, "cloud_init": "yes", "guest_agent": "no", "virtio": "yes", "warnings": []});
    let image = serde_json::json!({"id": IMAGE, "project": "default", "spec": spec, "facts": facts, "node": nodes[0], "copies": nodes[1..],
        "created_at": now()});
    let txn = Txn::default()
        .then(typed::put(keys::network(&project(), X), &network))
        .then(typed::put(keys::name("network", &project(), &Name::known("x")), &X))
        .then(typed::put(keys::image(&project(), IMAGE), &image))
        .then(typed::put(keys::name("image", &project(), &Name::known("deb")), &IMAGE));
    store.txn(txn).await.expect("written");
    store
}

/// Every node answers the tasks that it has; how many there were. None of `answer`: it is silent.
async fn nodes_answer(store: &EmbeddedStore, answer: impl Fn(&str) -> Option<TaskState>) -> usize {
    let all = store.list(keys::ALL_NODES).await.expect("a list").items;
    let answered: BTreeSet<&str> = all.iter().map(|kv| kv.key.as_str()).filter(|key| key.contains("/result/")).collect();
    let mut results = Vec::new();
    for kv in &all {
        let [_, node, "task", op] = kv.key.split('/').collect::<Vec<_>>()[..] else { continue };
        let key = format!("n/{node}/result/{op}");
        let Some(state) = answer(node).filter(|_| !answered.contains(key.as_str())) else { continue };
        let op = op.parse().expect("an id");
        results.push(typed::put(key, &TaskResult { op, state, progress: None, steps: Vec::new(), facts: None }));
    }
    for part in results.chunks(100) {
        store.txn(Txn { then: part.to_vec(), ..Txn::default() }).await.expect("written");
    }
    results.len()
}

/// The leader follows the store, and the nodes answer, until nobody has anything to say. How often nodes answered.
async fn play(store: &EmbeddedStore, answer: impl Fn(&str) -> Option<TaskState>) -> usize {
    play_then(store, answer, Vec::new()).await
}

/// Whenever nobody has anything to say any more, the next of `then` happens.
async fn play_then(store: &EmbeddedStore, answer: impl Fn(&str) -> Option<TaskState>, mut then: Vec<Txn>) -> usize {
    let lead = store.lead("a", std::time::Duration::from_secs(60)).await.expect("a store").expect("nobody else leads");
    let listing = store.list_many(&PREFIXES).await.expect("a listing");
    let mut intake = crate::reconcile::Intake::new(store.watch("", listing.revision.next()).await.expect("a watch"));
    let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    let mut answers = 0;
    loop {
        crate::reconcile::carry_out(store, &lead, &mut view, &mut touched).await.expect("it leads");
        let more = nodes_answer(store, &answer).await;
        answers += more;
        let idle = more == 0 && touched.is_empty() && view.revision == store.revision().await.expect("a revision");
        match then.pop() {
            Some(txn) if idle => drop(store.txn(txn).await.expect("written")),
            None if idle => return answers,
            later => then.extend(later),
        }
        while view.revision < store.revision().await.expect("a revision") {
            let batch = intake.next().await.expect("a batch");
            crate::reconcile::take_in(&mut view, &mut touched, batch, &mut intake).expect("taken in");
        }
    }
}

fn done(_: &str) -> Option<TaskState> {
    Some(TaskState::Done)
}

/// Keys about deletions, and the operation's state.
async fn left(store: &EmbeddedStore, op: &Operation) -> (Vec<String>, OpState) {
    let all = store.list("").await.expect("a list").items.into_iter().map(|kv| kv.key);
    let uids = [X.to_string(), IMAGE.to_string()];
    let about =
        |key: &String| key.starts_with("n/") || uids.iter().any(|uid| key.ends_with(uid)) || key.ends_with("/x") || key.ends_with("/deb");
    let found = typed::get_json::<Operation>(store, &keys::op(&project(), op.id)).await.expect("a read").expect("an operation").value;
    (all.filter(about).collect(), found.state)
}

async fn network_of(store: &EmbeddedStore) -> NetworkRecord {
    typed::get_json(store, &keys::network(&project(), X)).await.expect("a read").expect("there").value
}

#[tokio::test]
async fn a_network_that_many_nodes_have_goes_from_each_of_them() {
    let store = many().await;
    let op = network::delete(&store, &ask(), &Name::known("x")).await.expect("begun");
    let before = store.revision().await.expect("a revision").0;
    assert_eq!(play(&store, done).await, MANY, "each was asked once");
    let (keys, state) = left(&store, &op).await;
    assert!(keys.iter().all(|key| key.contains("image") && !key.starts_with("n/")), "{keys:?}");
    assert_eq!(state, OpState::Done);
    let writes = store.revision().await.expect("a revision").0 - before;
    assert!(writes < 40, "{writes} writes: many nodes go in one");
}

#[tokio::test]
async fn an_image_that_many_nodes_have_goes_over_crashes_of_the_leader() {
    let store = many().await;
    let op = image::delete(&store, &ask(), &Name::known("deb")).await.expect("begun");
    // Each leader carries out one write, and the next one begins with a listing.
    let mut answers = 0;
    loop {
        let listing = store.list_many(&PREFIXES).await.expect("a listing");
        let (mut view, mut touched): (ClusterView, Touched) = ClusterView::new(listing.revision, &listing.items);
        let first = plan(&mut view, &mut touched, now()).into_iter().next();
        let wrote = first.is_some();
        if let Some((_, txn)) = first {
            store.txn(txn).await.expect("written");
        }
        let more = nodes_answer(&store, done).await;
        answers += more;
        if !wrote && more == 0 {
            break;
        }
    }
    let (keys, state) = left(&store, &op).await;
    assert!(keys.iter().all(|key| key.contains("network")), "{keys:?}");
    assert_eq!((state, answers), (OpState::Done, MANY));
}

#[tokio::test]
async fn one_node_of_many_that_fails_ends_it_and_the_others_are_noted() {
    let store = many().await;
    let op = network::delete(&store, &ask(), &Name::known("x")).await.expect("begun");
    let busy = |node: &str| Some(if node == "h333" { TaskState::Failed { error: Error::refused("busy") } } else { TaskState::Done });
    play(&store, busy).await;
    let (keys, state) = left(&store, &op).await;
    assert!(!keys.iter().any(|key| key.contains("/task/") || key.contains("/result/")), "{keys:?}");
    let network = network_of(&store).await;
    assert_eq!((state, network.leaving), (OpState::Failed, None));
    assert!(network.nodes.contains(&name_of(333)));
    // Once more, and all is well.
    let again = network::delete(&store, &ask(), &Name::known("x")).await.expect("begun");
    play(&store, done).await;
    assert_eq!(left(&store, &again).await.1, OpState::Done);
}

#[tokio::test]
async fn what_many_nodes_were_told_is_taken_back_when_it_is_cancelled() {
    let store = many().await;
    let op = network::delete(&store, &ask(), &Name::known("x")).await.expect("begun");
    assert_eq!(play(&store, |_| None).await, 0, "nobody answers");
    let told = left(&store, &op).await.0;
    assert_eq!(told.iter().filter(|key| key.contains("/task/")).count(), MANY);
    app_op::cancel(&store, &ask(), &op.id.to_string()).await.expect("cancelled");
    play(&store, |_| None).await;
    let (keys, state) = left(&store, &op).await;
    assert!(!keys.iter().any(|key| key.starts_with("n/")), "{keys:?}");
    assert_eq!((state, network_of(&store).await.leaving), (OpState::Cancelled, None));
}

#[tokio::test]
async fn nodes_that_were_removed_are_not_waited_for() {
    let store = many().await;
    let op = image::delete(&store, &ask(), &Name::known("deb")).await.expect("begun");
    let here = |node: &str| (node != "h0" && node != "h399").then_some(TaskState::Done);
    let removed = |gone: Name| Txn::default().then(Op::DeletePrefix(keys::all_of_node(&gone))).then(Op::Delete(keys::joined(&gone)));
    assert_eq!(play_then(&store, here, [0, 399].map(name_of).map(removed).into()).await, MANY - 2);
    let (keys, state) = left(&store, &op).await;
    assert!(keys.iter().all(|key| key.contains("network")), "{keys:?}");
    assert_eq!(state, OpState::Done);
}
