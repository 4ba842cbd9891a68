//! A disk that lies over an image comes to a node that lacks the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use serde_json::json;
use tower::ServiceExt;
use vmkeep_agent::http::{ImageDigest, Member};
use vmkeep_agent::image::Peers;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;

use super::cluster::Cluster;
use super::to;

/// What nodes answer when they are asked for an image: this file, and who was asked. Of a VM that is off they have what the hosts'
/// own routes give.
#[derive(Default)]
pub struct Library {
    /// The routes of the hosts whose agents run.
    hosts: Mutex<BTreeMap<Name, Router>>,
    /// Two hosts have one folder here, which a pool that is not shared must not have; they say so when a test wants it.
    pub one_folder: AtomicBool,
    file: Mutex<PathBuf>,
    asked: Mutex<Vec<String>>,
}

impl Library {
    pub fn begin(&self, host: &Name, router: Router) {
        self.hosts.lock().expect("no panic").insert(host.clone(), router);
    }

    pub fn end(&self, host: &Name) {
        self.hosts.lock().expect("no panic").remove(host);
    }

    async fn moves(&self, node: &Name, path: &str) -> Result<Response<Body>, Error> {
        if path.contains("/same?") && !self.one_folder.load(Ordering::Relaxed) {
            return Ok(Response::new(Body::from("false")));
        }
        let router = self.hosts.lock().expect("no panic").get(node).cloned();
        let router = router.ok_or_else(|| Error::new(Code::Unavailable, format!("{node} is away")))?;
        let other = Name::known(if node.as_str() == "a" { "b" } else { "a" });
        let mut request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        request.extensions_mut().insert(Member(other));
        Ok(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
    }
}

#[async_trait]
impl Peers for Library {
    async fn get(&self, node: &Name, _: &str, path: &str) -> Result<Response<Body>, Error> {
        if path.starts_with("/n/moves/") {
            return self.moves(node, path).await;
        }
        let file = self.file.lock().expect("no panic").clone();
        if path.contains("/content") {
            self.asked.lock().expect("no panic").push(node.to_string());
            return Ok(Response::new(Body::from(std::fs::read(file).expect("the image"))));
        }
        let digest: ImageDigest = vmkeep_agent::image::digest(&file, &|_, _| {}).await.expect("the image");
        Ok(Response::new(Body::from(serde_json::to_vec(&digest).expect("plain data"))))
    }
}

/// An image of `a`, ready.
async fn image(cluster: &Cluster, pool: &Path) -> (String, PathBuf) {
    let (id, project, name) = (ImageId(uuid::Uuid::new_v4()), Name::known("default"), Name::known("debian"));
    let images = pool.join("images");
    std::fs::create_dir_all(&images).expect("a folder");
    let file = images.join(format!("{id}.qcow2"));
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&file).arg("1M").status().expect("qemu-img runs");
    assert!(made.success());
    let facts = json!({
        "kind": "disk", "virtual_size": "1M", "stored_size": "1M", "sha256": null, "firmware": "auto", "os": "linux", "os_name": null,
        "cloud_init": "no", "guest_agent": "no", "virtio": "yes", "warnings": [],
    });
    let record = ImageRecord {
        id,
        project: project.clone(),
        spec: serde_json::from_value(json!({"name": name, "source": {"from": "build", "recipe": "tiny"}})).expect("an image"),
        facts: Some(serde_json::from_value(facts).expect("facts")),
        leaving: None,
        node: Name::known("a"),
        copies: Default::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let key = keys::image(&project, id);
    let txn = Txn::default().then(typed::put(key.clone(), &record)).then(typed::put(keys::name("image", &project, &name), &id));
    cluster.store.txn(txn).await.expect("written");
    (key, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_the_destination_lacks_is_fetched_before_the_guest_comes() {
    let pool = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::of_fakes(pool.path(), false).await;
    let (key, file) = image(&cluster, pool.path()).await;
    cluster.vm(json!({"disks": [{"name": "root", "image": "debian"}]})).await;
    // Both nodes look into one folder: what b lacks is taken away when a has made its disk.
    let elsewhere = pool.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).expect("moved");
    *cluster.library.file.lock().expect("no panic") = elsewhere;
    let told = cluster.ending(&cluster.migrate(to("b")).await).await;
    assert!(told.starts_with("Done; runs on b"), "{told}");
    assert_eq!(*cluster.library.asked.lock().expect("no panic"), ["a"]);
    assert!(file.exists(), "it is here now");
    let image = typed::get_json::<ImageRecord>(cluster.store.as_ref(), &key).await.expect("a read").expect("there").value;
    assert_eq!(image.copies.iter().map(Name::as_str).collect::<Vec<_>>(), ["b"], "who deletes it asks b too");
}
