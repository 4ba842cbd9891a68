//! The OpenAPI 3.1 document of `/v1`, made from the route table and the types themselves, so that it cannot lie.
//!
//! Served at `/v1/openapi.json` and committed as `docs/reference/openapi.json`; a test compares the two.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use vmkeep_types::cluster::{
    ClusterBackup, ClusterFormed, ClusterInit, ClusterJoin, ClusterLeave, ClusterLeft, ClusterRecover, ClusterRecovering, ClusterView,
    JoinTokenCreate, JoinTokenCreated, UpgradeView, Vip,
};
use vmkeep_types::ha::HaSettings;
use vmkeep_types::image::ImageSpec;
use vmkeep_types::network::NetworkSpec;
use vmkeep_types::node::NodeSpec;
use vmkeep_types::operation::Operation;
use vmkeep_types::pool::PoolSpec;
use vmkeep_types::record::Role;
use vmkeep_types::stonith::{FenceSpec, FenceTest, FenceView};
use vmkeep_types::vm::VmSpec;

use crate::body::*;
use crate::ha::{ConfirmDead, HaChange, HaCheck, HaDisarm, HaForecast, HaHistory, HaStatus};
use crate::place::{BalanceAnswer, CapacityAnswer, DrainRequest, NodeActionRequest, PlacementAnswer, SimulateAnswer, SimulateRequest};
use crate::problem;
use crate::routes::{Method, ROUTES, Route, Shape};
use crate::secret::SecretsView;

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

macro_rules! schemas {
    ($($name:literal $type:ty),* $(,)?) => {
        /// Names in the route table to their types; a test fails when a route names a type that is not here.
        const SCHEMAS: &[(&str, SchemaOf)] = &[$(($name, of::<$type>)),*];
    };
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

schemas! {
    "Accepted" Accepted,
    "ActionRequest" ActionRequest,
    "AdoptRequest" AdoptRequest,
    "ApplyAnswer" ApplyAnswer,
    "ApplyRequest" ApplyRequest,
    "BalanceAnswer" BalanceAnswer,
    "CapacityAnswer" CapacityAnswer,
    "ClusterBackup" ClusterBackup,
    "ClusterFormed" ClusterFormed,
    "ClusterInit" ClusterInit,
    "ClusterJoin" ClusterJoin,
    "ClusterLeave" ClusterLeave,
    "ClusterLeft" ClusterLeft,
    "ClusterRecover" ClusterRecover,
    "ClusterRecovering" ClusterRecovering,
    "ClusterView" ClusterView,
    "ConfirmDead" ConfirmDead,
    "EventView" EventView,
    "ExecAnswer" ExecAnswer,
    "ExecRequest" ExecRequest,
    "FenceSpec" FenceSpec,
    "FenceTest" FenceTest,
    "FenceView" FenceView,
    "HaChange" HaChange,
    "HaCheck" HaCheck,
    "HaDisarm" HaDisarm,
    "HaForecast" HaForecast,
    "HaHistory" HaHistory,
    "HaSettings" HaSettings,
    "HaStatus" HaStatus,
    "HostCheck" HostCheck,
    "ImageSpec" ImageSpec,
    "ImageView" ImageView,
    "JoinTokenCreate" JoinTokenCreate,
    "JoinTokenCreated" JoinTokenCreated,
    "MovableAnswer" MovableAnswer,
    "NetworkSpec" NetworkSpec,
    "NetworkView" NetworkView,
    "NodeActionRequest" NodeActionRequest,
    "DrainRequest" DrainRequest,
    "NodeSpec" NodeSpec,
    "NodeView" NodeView,
    "Operation" Operation,
    "Page<DomainView>" Page<DomainView>,
    "Page<EventView>" Page<EventView>,
    "Page<ImageView>" Page<ImageView>,
    "Page<NetworkView>" Page<NetworkView>,
    "Page<NodeView>" Page<NodeView>,
    "Page<Operation>" Page<Operation>,
    "Page<PoolView>" Page<PoolView>,
    "Page<TokenView>" Page<TokenView>,
    "Page<VmStats>" Page<VmStats>,
    "Page<VmView>" Page<VmView>,
    "Page<VolumeView>" Page<VolumeView>,
    "PlacementAnswer" PlacementAnswer,
    "PoolSpec" PoolSpec,
    "PoolView" PoolView,
    "SecretsView" SecretsView,
    "SendKeyRequest" SendKeyRequest,
    "SimulateAnswer" SimulateAnswer,
    "SimulateRequest" SimulateRequest,
    "TokenCreate" TokenCreate,
    "TokenCreated" TokenCreated,
    "UpgradeView" UpgradeView,
    "Vip" Vip,
    "UploadCreated" UploadCreated,
    "u64" u64,
    "Vec<AddressView>" Vec<AddressView>,
    "VersionAnswer" VersionAnswer,
    "VmSpec" VmSpec,
    "VmView" VmView,
    "VolumeCreate" VolumeCreate,
    "VolumeView" VolumeView,
    "XmlAnswer" XmlAnswer,
}

/// The whole document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = SchemaGenerator::new(settings);
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        put(&mut paths, route.path, route.method, operation.clone());
        if let Some(path) = route.project_path() {
            put(&mut paths, &path, route.method, in_project(operation));
        }
    }
    let problem = of::<ProblemBody>(&mut generator);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vmkeep",
            "version": "v1",
            "description": "Virtual machines that are kept running. On the unix socket the caller is known by its peer credentials; over TLS by a bearer token or a certificate. \
                Long work answers 202 with an operation: follow it at /v1/operations/{id}?watch=true. \
                Paths without a project mean project `default`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "From `vmkeep token create`; not needed on the unix socket."},
                "certificate": {"type": "mutualTLS", "description": "Of an authority that [tls] client_ca names; the common name has a role there."},
            },
            "responses": {"Problem": {"description": "What is wrong, and what to do", "content": {problem::CONTENT_TYPE: {"schema": problem}}}},
        },
    })
}

fn put(paths: &mut Map<String, Value>, path: &str, method: Method, operation: Value) {
    let item = paths.entry(path).or_insert_with(|| json!({}));
    item[method.as_str().to_ascii_lowercase()] = operation;
}

/// The same operation under `/v1/projects/{project}`.
fn in_project(mut operation: Value) -> Value {
    let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    operation["operationId"] = format!("project.{id}").into();
    let project = path_parameter("project", "Project that the object belongs to");
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.insert(0, project);
    } else {
        operation["parameters"] = json!([project]);
    }
    operation
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let tag = route.id.split('.').next().unwrap_or(route.id);
    let mut operation = json!({
        "operationId": route.id,
        "tags": [tag],
        "summary": route.summary,
        "description": format!("Least role: {}.", role(route.role)),
        "responses": responses(route, generator),
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(name) = route.request {
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema(name, generator)}}});
    } else if route.id == "upload.put" {
        operation["requestBody"] = json!({"required": true, "content": {"application/octet-stream": {}}});
    }
    operation
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

fn schema(name: &str, generator: &mut SchemaGenerator) -> Value {
    match SCHEMAS.iter().find(|(n, _)| *n == name) {
        Some((_, of)) => of(generator).to_value(),
        None => json!({"description": format!("{name} has no schema: add it to openapi::SCHEMAS")}),
    }
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let body = route.answer.map(|name| schema(name, generator));
    let json = |body: &Option<Value>| body.as_ref().map(|schema| json!({"application/json": {"schema": schema}}));
    let (status, description, content) = match route.shape {
        Shape::Json if route.answer.is_none() && route.method != Method::Get => ("204", "Done", None),
        Shape::Json => ("200", "The answer", json(&body).or_else(|| Some(json!({"application/json": {}})))),
        Shape::Watchable => {
            let mut content = json(&body).unwrap_or_else(|| json!({}));
            content["text/event-stream"] = json!({"schema": of::<WatchEvent>(generator)});
            ("200", "A page, or with ?watch=true a stream of events", Some(content))
        }
        Shape::Accepted => ("202", "Written down; the operation carries it out", json(&body)),
        Shape::WebSocket => ("101", "The connection becomes a WebSocket", None),
        Shape::Bytes => ("200", "Bytes", Some(json(&body).unwrap_or_else(|| json!({media_type(route): {}})))),
        Shape::Text => ("200", "Text", Some(json!({"text/plain": {"schema": {"type": "string"}}}))),
    };
    let mut answer = json!({"description": description});
    if let Some(content) = content {
        answer["content"] = content;
    }
    if matches!(route.id, "vm.get") {
        answer["headers"] = json!({"ETag": {"description": "Revision of the wish, for If-Match", "schema": {"type": "string"}}});
    }
    json!({status: answer, "default": {"$ref": "#/components/responses/Problem"}})
}

fn media_type(route: &Route) -> &'static str {
    if route.id == "vm.screenshot" { "image/*" } else { "application/octet-stream" }
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters: Vec<Value> = fields_of(route.path).map(|field| path_field(route, field)).collect();
    let mut query = |name: &str, kind: Value, description: &str| {
        parameters.push(json!({"name": name, "in": "query", "required": false, "description": description, "schema": kind}));
    };
    let (text, number, flag) = (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}), json!({"type": "boolean"}));
    if route.answer.is_some_and(|a| a.starts_with("Page<")) {
        if matches!(route.id, "vm.list" | "image.list") {
            query("label", text.clone(), "key=value pairs, comma separated; all must match");
        }
        query("limit", json!({"type": "integer", "minimum": 1, "maximum": PAGE_MAX}), "Rows of one page");
        query("after", text.clone(), "`next` of the page before");
    }
    match route.id {
        "vm.delete" => query("keep_disks", flag.clone(), "Keep its volumes"),
        "vm.logs" => {
            query("source", json!({"enum": ["serial", "qemu"]}), "Which log; serial when left out");
            query("lines", json!({"type": "integer", "minimum": 1, "maximum": 10000}), "Last lines; 200 when left out");
            query("follow", flag.clone(), "Go on with what is written, until the reader goes");
        }
        "upload.put" => query("offset", number, "Where the bytes begin; what is there already, from GET"),
        _ => {}
    }
    if route.shape == Shape::Watchable {
        query("watch", flag, "Stream changes as server-sent events");
        parameters.push(header("Last-Event-ID", "Go on after this event of a watch; 410 when it is too old"));
    }
    if route.takes_idempotency_key() {
        parameters.push(header(
            "Idempotency-Key",
            "The same request with the same key, within days, is carried out once; another request is 409",
        ));
    }
    if route.takes_if_match() {
        parameters.push(header("If-Match", "ETag of what is changed; 409 `stale` when it has another one by now. `*`: must exist"));
    }
    parameters
}

/// `{name}` and `{action}` of a path.
fn fields_of(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn path_field(route: &Route, field: &str) -> Value {
    // The summary of such a route is the list of them.
    let actions: Vec<&str> = route.summary.split(", ").collect();
    match field {
        "action" => json!({"name": field, "in": "path", "required": true, "schema": {"enum": actions}}),
        "id" => path_parameter(field, "Its id"),
        _ => path_parameter(field, &format!("Name of the {}", route.id.split('.').next().unwrap_or("object"))),
    }
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": {"type": "string"}})
}

fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": description, "schema": {"type": "string"}})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;

    use super::*;
    use crate::routes::Scope;

    /// After a change of routes or types: `UPDATE_EXPECT=1 cargo test -p vmkeep-api openapi`.
    #[test]
    fn the_committed_document_is_this_one() {
        let text = serde_json::to_string_pretty(&document()).expect("it is JSON") + "\n";
        expect_file!["../../../docs/reference/openapi.json"].assert_eq(&text);
    }

    #[test]
    fn every_named_type_has_a_schema_and_every_schema_a_route() {
        let named: BTreeSet<&str> = ROUTES.iter().flat_map(|r| [r.request, r.answer]).flatten().collect();
        let known: BTreeSet<&str> = SCHEMAS.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, known);
        assert_eq!(known.len(), SCHEMAS.len(), "each once");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 100, "{}", references.len());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leaves the document"));
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                references.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| collect(v, references));
            }
            Value::Array(items) => items.iter().for_each(|v| collect(v, references)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_there_twice_or_once_with_its_fields() {
        let document = document();
        let mut ids = BTreeSet::new();
        for route in ROUTES {
            let mut paths = vec![route.path.to_owned()];
            paths.extend(route.project_path());
            assert_eq!(paths.len(), if route.scope == Scope::Project { 2 } else { 1 }, "{}", route.id);
            for path in paths {
                let operation = &document["paths"][&path][route.method.as_str().to_ascii_lowercase()];
                let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{path} is missing"));
                assert!(ids.insert(id.to_owned()), "{id} twice");
                let declared: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|p| p["in"] == "path")
                    .filter_map(|p| p["name"].as_str())
                    .collect();
                assert_eq!(declared, fields_of(&path).collect(), "{path}");
            }
        }
    }
}
