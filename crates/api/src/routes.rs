//! The route table of `/v1`, as data.
//!
//! Project-scoped paths exist twice: `/v1/projects/{project}/vms/…` and, for project `default`, `/v1/vms/…`. The table holds
//! the short form; [`Route::project_path`] gives the long one.

use vmkeep_types::record::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
    Patch,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Project,
    Cluster,
}

/// What travels besides JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Json,
    /// JSON page, or SSE with `?watch`.
    Watchable,
    /// 202 with an operation.
    Accepted,
    WebSocket,
    Bytes,
    Text,
}

/// One row: schema names refer to `openapi::schemas`.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub id: &'static str,
    pub method: Method,
    pub path: &'static str,
    pub scope: Scope,
    /// Least role that may call it.
    pub role: Role,
    pub request: Option<&'static str>,
    pub answer: Option<&'static str>,
    pub shape: Shape,
    pub summary: &'static str,
}

impl Route {
    /// Does a call of it belong into the audit log? Consoles are read and typed into.
    pub fn is_audited(&self) -> bool {
        self.method != Method::Get || self.shape == Shape::WebSocket
    }

    /// Does it change one object that has an ETag?
    pub fn takes_if_match(&self) -> bool {
        let noun = self.id.split('.').next().unwrap_or_default();
        let has_tag = matches!(noun, "vm" | "image" | "volume" | "network" | "pool" | "op" | "node");
        self.method != Method::Get && has_tag && self.path.contains('{') && !matches!(self.id, "vm.sendkey" | "vm.exec")
    }

    /// Does it begin something that must not be begun twice when the request comes again?
    pub fn takes_idempotency_key(&self) -> bool {
        self.method == Method::Post && (self.shape == Shape::Accepted || self.id == "token.create")
    }

    /// `/v1/projects/{project}/vms` for `/v1/vms`.
    pub fn project_path(&self) -> Option<String> {
        match self.scope {
            Scope::Project => Some(self.path.replacen("/v1/", "/v1/projects/{project}/", 1)),
            Scope::Cluster => None,
        }
    }
}

macro_rules! routes {
    ($($id:literal $method:ident $path:literal $scope:ident $role:ident ($($req:literal)?) ($($ans:literal)?) $shape:ident $summary:literal;)*) => {
        /// Every route that the server has; a test walks them all.
        pub const ROUTES: &[Route] = &[$(Route {
            id: $id,
            method: Method::$method,
            path: $path,
            scope: Scope::$scope,
            role: Role::$role,
            request: routes!(@opt $($req)?),
            answer: routes!(@opt $($ans)?),
            shape: Shape::$shape,
            summary: $summary,
        }),*];
    };
    (@opt) => { None };
    (@opt $x:literal) => { Some($x) };
}

routes! {
    "vm.list" Get "/v1/vms" Project Viewer () ("Page<VmView>") Watchable "List or watch VMs";
    "vm.create" Post "/v1/vms" Project Operator ("VmSpec") ("Accepted") Accepted "Create a VM; takes Idempotency-Key";
    "vm.get" Get "/v1/vms/{name}" Project Viewer () ("VmView") Json "Show a VM";
    "vm.put" Put "/v1/vms/{name}" Project Operator ("VmSpec") ("Accepted") Accepted "Create or replace a VM's wish; If-Match guards it";
    "vm.delete" Delete "/v1/vms/{name}" Project Operator () ("Accepted") Accepted "Delete a VM; ?keep_disks=true keeps its volumes";
    "vm.action" Post "/v1/vms/{name}/actions/{action}" Project Operator ("ActionRequest") ("Accepted") Accepted "start, stop, kill, restart, reboot, reset, pause, resume, rename, clone, release, migrate";
    "vm.forecast" Get "/v1/vms/{name}/forecast" Project Viewer () ("HaForecast") Json "What would become of a VM if its host died now";
    "vm.movable" Get "/v1/vms/{name}/movable" Project Viewer () ("MovableAnswer") Json "What keeps a VM from moving to another node";
    "vm.adopt" Post "/v1/adopt" Project Admin ("AdoptRequest") ("Accepted") Accepted "Take over an existing libvirt domain without stopping it";
    "vm.xml" Get "/v1/vms/{name}/xml" Project Viewer () ("XmlAnswer") Json "The domain XML libvirt has";
    "vm.console" Get "/v1/vms/{name}/console" Project Operator () () WebSocket "Serial console; binary frames both ways";
    "vm.vnc" Get "/v1/vms/{name}/vnc" Project Operator () () WebSocket "VNC (RFB) in binary frames";
    "vm.screenshot" Get "/v1/vms/{name}/screenshot" Project Operator () () Bytes "Picture of the display";
    "vm.sendkey" Post "/v1/vms/{name}/sendkey" Project Operator ("SendKeyRequest") () Json "Press keys";
    "vm.exec" Post "/v1/vms/{name}/exec" Project Operator ("ExecRequest") ("ExecAnswer") Json "Run a program in the guest by its agent";
    "vm.addresses" Get "/v1/vms/{name}/addresses" Project Viewer () ("Vec<AddressView>") Json "IP addresses and where they are known from";
    "vm.logs" Get "/v1/vms/{name}/logs" Project Operator () () Text "Last lines of the serial or QEMU log";
    "vm.events" Get "/v1/vms/{name}/events" Project Viewer () ("Page<EventView>") Watchable "Events of one VM";
    "vm.explain" Get "/v1/vms/{name}/placement" Project Viewer () ("PlacementAnswer") Json "Every node for this VM, and why it is chosen or not";
    "domain.list" Get "/v1/domains" Cluster Viewer () ("Page<DomainView>") Json "All libvirt domains of the node, foreign ones too";
    "apply" Post "/v1/apply" Project Operator ("ApplyRequest") ("ApplyAnswer") Json "Plan (dry_run) or apply manifests, all problems at once";
    "image.list" Get "/v1/images" Project Viewer () ("Page<ImageView>") Watchable "List images";
    "image.create" Post "/v1/images" Project Operator ("ImageSpec") ("Accepted") Accepted "Import or build an image";
    "image.get" Get "/v1/images/{name}" Project Viewer () ("ImageView") Json "Show an image";
    "image.put" Put "/v1/images/{name}" Project Operator ("ImageSpec") ("ImageView") Json "Change an image's description and labels";
    "image.delete" Delete "/v1/images/{name}" Project Operator () ("Accepted") Accepted "Delete an image that nothing uses";
    "image.export" Get "/v1/images/{name}/content" Project Operator () () Bytes "Download the image: a disk as qcow2, a CD as ISO";
    "upload.create" Post "/v1/uploads" Project Operator () ("UploadCreated") Json "Begin an upload";
    "upload.get" Get "/v1/uploads/{id}" Project Operator () ("UploadCreated") Json "How much of an upload is there";
    "upload.put" Put "/v1/uploads/{id}" Project Operator () ("UploadCreated") Bytes "Append bytes at ?offset=";
    "upload.delete" Delete "/v1/uploads/{id}" Project Operator () () Json "Drop an upload that is not wanted any more";
    "volume.list" Get "/v1/volumes" Project Viewer () ("Page<VolumeView>") Watchable "List volumes";
    "volume.create" Post "/v1/volumes" Project Operator ("VolumeCreate") ("Accepted") Accepted "Create an unattached volume";
    "volume.get" Get "/v1/volumes/{name}" Project Viewer () ("VolumeView") Json "Show a volume";
    "volume.delete" Delete "/v1/volumes/{name}" Project Operator () ("Accepted") Accepted "Delete an unused volume";
    "network.list" Get "/v1/networks" Project Viewer () ("Page<NetworkView>") Watchable "List networks";
    "network.put" Put "/v1/networks/{name}" Project Admin ("NetworkSpec") ("NetworkView") Json "Create or change a network";
    "network.get" Get "/v1/networks/{name}" Project Viewer () ("NetworkView") Json "Show a network";
    "network.delete" Delete "/v1/networks/{name}" Project Admin () ("Accepted") Accepted "Delete a network that nothing uses";
    "pool.list" Get "/v1/pools" Cluster Viewer () ("Page<PoolView>") Json "List pools";
    "pool.get" Get "/v1/pools/{name}" Cluster Viewer () ("PoolView") Json "Show a pool";
    "pool.put" Put "/v1/pools/{name}" Cluster Admin ("PoolSpec") ("PoolView") Json "Create or change a pool; one that is in use stays where it is";
    "pool.delete" Delete "/v1/pools/{name}" Cluster Admin () () Json "Delete a pool that nothing lies in; its folder stays";
    "op.list" Get "/v1/operations" Project Viewer () ("Page<Operation>") Watchable "List or watch operations";
    "op.get" Get "/v1/operations/{id}" Project Viewer () ("Operation") Watchable "Show or follow one operation";
    "op.cancel" Delete "/v1/operations/{id}" Project Operator () ("Operation") Json "Cancel an operation that has not begun or can stop";
    "event.list" Get "/v1/events" Project Viewer () ("Page<EventView>") Watchable "Events of everything";
    "event.get" Get "/v1/events/{id}" Project Viewer () ("EventView") Json "Show one event";
    "node.list" Get "/v1/nodes" Cluster Viewer () ("Page<NodeView>") Json "Hosts and their facts";
    "node.get" Get "/v1/nodes/{name}" Cluster Viewer () ("NodeView") Json "Show a host";
    "node.put" Put "/v1/nodes/{name}" Cluster Admin ("NodeSpec") ("NodeView") Json "Change what is said of a host: labels, taints, overcommit, reserve, failure domain";
    "node.action" Post "/v1/nodes/{name}/actions/{action}" Cluster Admin ("NodeActionRequest") ("NodeView") Json "cordon, uncordon";
    "node.drain" Post "/v1/nodes/{name}/drain" Cluster Admin ("DrainRequest") ("Accepted") Accepted "Close a host to new VMs and have those that are there move to others";
    "fence.get" Get "/v1/nodes/{name}/fence" Cluster Viewer () ("FenceView") Json "How a host's power is cut, without secrets";
    "fence.put" Put "/v1/nodes/{name}/fence" Cluster Admin ("FenceSpec") ("FenceView") Json "Set the fence agent that cuts a host's power, and its options";
    "fence.delete" Delete "/v1/nodes/{name}/fence" Cluster Admin () () Json "Forget how a host's power is cut";
    "fence.test" Post "/v1/nodes/{name}/fence/test" Cluster Admin ("FenceTest") ("FenceView") Json "Ask a host's fence agent for the power's state, or really switch it off and on";
    "place.capacity" Get "/v1/cluster/capacity" Cluster Viewer () ("CapacityAnswer") Json "How many hosts may fail with everything still fitting";
    "place.simulate" Post "/v1/cluster/simulate" Cluster Viewer ("SimulateRequest") ("SimulateAnswer") Json "Would these VMs fit, and where does it break";
    "place.balance" Get "/v1/cluster/balance" Cluster Viewer () ("BalanceAnswer") Json "The few moves that would help most; nothing is moved";
    "host.check" Get "/v1/host/check" Cluster Viewer () ("HostCheck") Json "What is right and wrong with the host";
    "stats.list" Get "/v1/stats" Project Viewer () ("Page<VmStats>") Json "Counters of running VMs";
    "token.list" Get "/v1/tokens" Cluster Admin () ("Page<TokenView>") Json "List tokens, without secrets";
    "token.create" Post "/v1/tokens" Cluster Admin ("TokenCreate") ("TokenCreated") Json "Make a token; its secret is shown once";
    "token.delete" Delete "/v1/tokens/{id}" Cluster Admin () () Json "Revoke a token";
    "secret.show" Get "/v1/secrets" Cluster Viewer () ("SecretsView") Json "Keys under which secrets lie sealed, and who can open them";
    "secret.rotate" Post "/v1/secrets/rotate" Cluster Admin () ("SecretsView") Json "Renew the keys of the control plane's hosts, and the one that seals";
    "cluster.show" Get "/v1/cluster" Cluster Viewer () ("ClusterView") Json "Members, etcd's health, and what is degraded";
    "cluster.init" Post "/v1/cluster/init" Cluster Admin ("ClusterInit") ("ClusterFormed") Json "Make this host the first member of a cluster; unix socket only";
    "cluster.join" Post "/v1/cluster/join" Cluster Admin ("ClusterJoin") ("ClusterFormed") Json "Make this host a member of a cluster; unix socket only";
    "cluster.leave" Post "/v1/cluster/leave" Cluster Admin ("ClusterLeave") ("ClusterLeft") Json "Take this host out of its cluster; unix socket only";
    "cluster.recover" Post "/v1/cluster/recover" Cluster Admin ("ClusterRecover") ("ClusterRecovering") Json "Restore the store when etcd's majority is lost for good; unix socket only";
    "cluster.lost" Post "/v1/cluster/members/{name}/lost" Cluster Admin () () Json "Confirm that a node which a recovery waits for is gone for good";
    "cluster.upgrade" Get "/v1/cluster/upgrade" Cluster Viewer () ("UpgradeView") Json "May a rolling upgrade go on, and with whom";
    "cluster.raise-level" Post "/v1/cluster/level" Cluster Admin () ("u64") Json "Raise the store's format level to the newest that every member can write";
    "cluster.vip.get" Get "/v1/cluster/vip" Cluster Viewer () ("Vip") Json "The API's one address";
    "cluster.vip.put" Put "/v1/cluster/vip" Cluster Admin ("Vip") ("Vip") Json "Give the API one address that moves to a control node which answers";
    "cluster.vip.delete" Delete "/v1/cluster/vip" Cluster Admin () () Json "Take that address away";
    "cluster.token" Post "/v1/cluster/tokens" Cluster Admin ("JoinTokenCreate") ("JoinTokenCreated") Json "Make a token for one host to join with";
    "cluster.remove" Delete "/v1/cluster/members/{name}" Cluster Admin () () Json "Take a dead member out";
    "cluster.promote" Post "/v1/cluster/members/{name}/promote" Cluster Admin () () Json "Make a compute node a control node with a vote in etcd";
    "cluster.demote" Post "/v1/cluster/members/{name}/demote" Cluster Admin () () Json "Make a control node a compute node; its vote in etcd goes";
    "cluster.backup" Post "/v1/cluster/backup" Cluster Admin () ("ClusterBackup") Json "Copy etcd's database to a file on the node that answers";
    "cluster.defrag" Post "/v1/cluster/defrag" Cluster Admin () () Json "Give disk space of etcd back, one member after the other";
    "ha.status" Get "/v1/ha" Cluster Viewer () ("HaStatus") Json "Who would be reset, who decides, and which VMs wait for another host";
    "ha.check" Get "/v1/ha/check" Cluster Viewer () ("HaCheck") Json "What would become of each highly available VM if its host died now";
    "ha.history" Get "/v1/ha/history" Cluster Viewer () ("HaHistory") Json "Hosts that died, and what became of their VMs";
    "ha.disarm" Post "/v1/ha/disarm" Cluster Admin ("HaDisarm") () Json "Fence and recover nothing for a while; VMs run on";
    "ha.arm" Post "/v1/ha/arm" Cluster Admin () () Json "Fence and recover again";
    "ha.set" Post "/v1/ha/settings" Cluster Admin ("HaChange") ("HaSettings") Json "Change how high availability is set";
    "ha.confirm-dead" Post "/v1/ha/nodes/{name}/confirm-dead" Cluster Admin ("ConfirmDead") () Json "Say that a silent host is dead, so that its VMs run elsewhere";
    "version" Get "/v1/version" Cluster Viewer () ("VersionAnswer") Json "Versions";
    "schema" Get "/v1/schema" Cluster Viewer () () Json "JSON schema of the manifests";
    "openapi" Get "/v1/openapi.json" Cluster Viewer () () Json "This contract as OpenAPI 3.1";
    "metrics" Get "/metrics" Cluster Viewer () () Text "Prometheus metrics";
}

/// `/v1/vms/{name}` with its fields filled in; percent-encoding is not needed because names are checked.
pub fn fill(path: &str, fields: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (field, value) in fields {
        out = out.replacen(&format!("{{{field}}}"), value, 1);
    }
    out
}
