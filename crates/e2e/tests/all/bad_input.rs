//! What bad input gets: all problems at once, where and why, and nothing written.

use vmkeep_e2e::host::Host;

fn refused(host: &Host, manifest: &str, words: &[&str]) {
    let file = host.path("bad.yaml");
    std::fs::write(&file, manifest).expect("a manifest");
    let out = host.vmkeep(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "accepted: {manifest}");
    for word in words {
        assert!(told.contains(word), "'{word}' is missing in:\n{told}");
    }
    assert_eq!(host.json(["vm", "list", "-o", "json"]).as_array().map(Vec::len), Some(0), "something was written");
}

#[test]
fn every_bad_manifest_is_refused_before_anything_is_written() {
    let host = Host::new("bad");
    refused(&host, "kind: vm\nname: a/b\n", &["name", "a/b"]);
    refused(&host, "kind: vm\nname: a\nmemroy: 1G\n", &["memroy", "memory", "3"]);
    refused(&host, "kind: vm\nname: a\nmemory: 900T\ndisks: [{name: d, empty: true, size: 1G}]\n", &["memory"]);
    refused(&host, "kind: vm\nname: a\nmemory: -1G\n", &["-1G"]);
    refused(&host, "kind: vm\nname: a\nmemory: 1024\n", &["unit"]);
    refused(&host, "kind: vm\nname: a\nimage: nothing-like-it\n", &["nothing-like-it"]);
    let twice = "kind: vm\nname: a\nnics: [{name: x, mac: '52:54:00:00:00:01'}, {name: y, mac: '52:54:00:00:00:01'}]\ndisks: [{name: d}]\n";
    refused(&host, twice, &["52:54:00:00:00:01", "d"]);
    let bomb = format!(
        "kind: vm\nname: a\nlabels:\n{}",
        (0..12).fold("  x0: &a0 y\n".to_owned(), |s, n| s + &format!(
            "  x{}: &a{} [{}]\n",
            n + 1,
            n + 1,
            vec![format!("*a{n}"); 10].join(",")
        ))
    );
    refused(&host, &bomb, &[]);
    refused(&host, &format!("kind: vm\nname: a\ndescription: {}\n", "x".repeat(100 << 20)), &[]);
}
