//! The registry, request by request, as the distribution specification has it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::str::FromStr;

use cluster_images::Digest;
use common::{Registry, client};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name}: {response:?}")).to_str().unwrap()
}

async fn code(response: Response) -> String {
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

async fn send(method: &str, url: String) -> Response {
    client().request(Method::from_str(method).unwrap(), url).send().await.unwrap()
}

async fn push_blob(registry: &Registry, repository: &str, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let url = registry.url(&format!("/v2/{repository}/blobs/uploads/?digest={digest}"));
    let response = client().post(url).body(content.to_vec()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    digest
}

fn manifest(config: &[u8], layer: &[u8], subject: Option<&Digest>) -> Vec<u8> {
    let part = |kind: &str, content: &[u8]| json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len()});
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("application/vnd.oci.image.config.v1+json", config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", layer)],
    });
    if let Some(subject) = subject {
        manifest["artifactType"] = json!("test/sbom");
        manifest["subject"] =
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject, "size": 2});
    }
    serde_json::to_vec(&manifest).unwrap()
}

async fn put_manifest(registry: &Registry, path: &str, bytes: &[u8]) -> Response {
    client()
        .put(registry.url(path))
        .header("content-type", "application/vnd.oci.image.manifest.v1+json")
        .body(bytes.to_vec())
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_blob_in_chunks_must_come_in_order() {
    let registry = Registry::start().await;
    let content = common::noise(300_000, 1);
    let digest = Digest::of(&content);
    let started = send("POST", registry.url("/v2/a/b/blobs/uploads/")).await;
    assert_eq!(started.status(), StatusCode::ACCEPTED);
    let location = registry.url(header(&started, "location"));
    let chunk = |from: usize, to: usize| {
        client()
            .patch(&location)
            .header("content-range", format!("{from}-{}", to - 1))
            .body(content[from..to].to_vec())
            .send()
    };
    let first = chunk(0, 100_000).await.unwrap();
    assert_eq!((first.status(), header(&first, "range")), (StatusCode::ACCEPTED, "0-99999"));
    let gap = chunk(200_000, 300_000).await.unwrap();
    assert_eq!((gap.status(), header(&gap, "range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-99999"));
    assert_eq!(chunk(0, 100_000).await.unwrap().status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let wrong_length =
        client().patch(&location).header("content-range", "100000-100009").body("x").send().await.unwrap();
    assert_eq!(code(wrong_length).await, "SIZE_INVALID");
    assert_eq!(chunk(100_000, 200_000).await.unwrap().status(), StatusCode::ACCEPTED);
    let status = send("GET", location.clone()).await;
    assert_eq!((status.status(), header(&status, "range")), (StatusCode::NO_CONTENT, "0-199999"));
    // The last chunk comes with the end.
    let end = client()
        .put(format!("{location}?digest={digest}"))
        .header("content-range", "200000-299999")
        .body(content[200_000..].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!((end.status(), header(&end, "docker-content-digest")), (StatusCode::CREATED, digest.as_str()));
    assert_eq!(send("GET", location).await.status(), StatusCode::NOT_FOUND);

    let blob = registry.url(&format!("/v2/a/b/blobs/{digest}"));
    let head = send("HEAD", blob.clone()).await;
    assert_eq!((head.status(), header(&head, "content-length")), (StatusCode::OK, "300000"));
    assert_eq!(send("GET", blob.clone()).await.bytes().await.unwrap(), content);
    let part = client().get(&blob).header("range", "bytes=299990-").send().await.unwrap();
    assert_eq!(
        (part.status(), header(&part, "content-range")),
        (StatusCode::PARTIAL_CONTENT, "bytes 299990-299999/300000")
    );
    assert_eq!(part.bytes().await.unwrap(), content[299_990..]);
    let beyond = client().get(&blob).header("range", "bytes=300000-").send().await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn content_that_is_not_its_digest_never_becomes_a_blob() {
    let registry = Registry::start().await;
    let wanted = Digest::of(b"wanted");
    let url = registry.url(&format!("/v2/a/blobs/uploads/?digest={wanted}"));
    let response = client().post(url).body("other").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(code(response).await, "DIGEST_INVALID");
    for digest in [&wanted, &Digest::of(b"other")] {
        assert_eq!(
            send("HEAD", registry.url(&format!("/v2/a/blobs/{digest}"))).await.status(),
            StatusCode::NOT_FOUND
        );
    }
    assert_eq!(std::fs::read_dir(registry.dir.path().join("uploads")).unwrap().count(), 0);
    let started = send("POST", registry.url("/v2/a/blobs/uploads/")).await;
    let location = registry.url(header(&started, "location"));
    assert_eq!(code(client().put(&location).send().await.unwrap()).await, "DIGEST_INVALID");
    assert_eq!(send("DELETE", location.clone()).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(code(send("GET", location).await).await, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(std::fs::read_dir(registry.dir.path().join("uploads")).unwrap().count(), 0);
    assert_eq!(code(send("GET", registry.url("/v2/a/blobs/sha256:x")).await).await, "DIGEST_INVALID");
    assert_eq!(code(send("GET", registry.url("/v2/A/tags/list")).await).await, "NAME_INVALID");
}

#[tokio::test]
async fn a_push_that_broke_off_goes_on_where_it_was() {
    let registry = Registry::start().await;
    let content = common::noise(600_000, 2);
    let started = send("POST", registry.url("/v2/a/blobs/uploads/")).await;
    let path = header(&started, "location").to_owned();
    let mut socket = tokio::net::TcpStream::connect(registry.address).await.unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", content.len());
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&content[..400_000]).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    // The registry answers or closes; either way it is done with the request.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut rest).await;
    let location = registry.url(&path);
    let status = loop {
        let status = send("GET", location.clone()).await;
        // The request before may hold the session for another moment.
        if status.status() != StatusCode::BAD_REQUEST {
            break status;
        }
        tokio::task::yield_now().await;
    };
    let done: usize = header(&status, "range").trim_start_matches("0-").parse::<usize>().unwrap() + 1;
    assert!((1..=400_000).contains(&done), "{done}");
    let digest = Digest::of(&content);
    let end = client()
        .put(format!("{location}?digest={digest}"))
        .body(content[done..].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!(end.status(), StatusCode::CREATED, "{:?}", end.text().await);
}

#[tokio::test]
async fn manifests_are_checked_kept_and_removed() {
    let registry = Registry::start().await;
    let (config, layer) = (b"{}".as_slice(), b"layer".as_slice());
    let bytes = manifest(config, layer, None);
    let digest = Digest::of(&bytes);
    let missing = put_manifest(&registry, "/v2/a/manifests/v1", &bytes).await;
    assert_eq!(code(missing).await, "MANIFEST_BLOB_UNKNOWN");
    push_blob(&registry, "a", config).await;
    push_blob(&registry, "a", layer).await;
    let wrong = put_manifest(&registry, &format!("/v2/a/manifests/{}", Digest::of(b"x")), &bytes).await;
    assert_eq!(code(wrong).await, "DIGEST_INVALID");
    assert_eq!(code(put_manifest(&registry, "/v2/a/manifests/v1", b"{}").await).await, "MANIFEST_INVALID");
    let large = put_manifest(&registry, "/v2/a/manifests/v1", &vec![b' '; 5 << 20]).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);

    for tag in ["v1", "v2", "v10"] {
        let put = put_manifest(&registry, &format!("/v2/a/manifests/{tag}"), &bytes).await;
        assert_eq!(
            (put.status(), header(&put, "docker-content-digest")),
            (StatusCode::CREATED, digest.as_str())
        );
    }
    let found = send("GET", registry.url("/v2/a/manifests/v1")).await;
    assert_eq!(header(&found, "content-type"), "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(found.bytes().await.unwrap(), bytes);
    let head = send("HEAD", registry.url(&format!("/v2/a/manifests/{digest}"))).await;
    assert_eq!(header(&head, "content-length"), bytes.len().to_string());
    // As a mirror of Docker Hub, and by Docker Hub's own path.
    for path in ["/v2/library/a/manifests/v1?ns=docker.io", "/v2/library/a/manifests/v1"] {
        assert_eq!(send("HEAD", registry.url(path)).await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(
        send("HEAD", registry.url("/v2/a/manifests/v1?ns=gcr.io")).await.status(),
        StatusCode::NOT_FOUND
    );

    let page = send("GET", registry.url("/v2/a/tags/list?n=2")).await;
    assert_eq!(header(&page, "link"), "</v2/a/tags/list?n=2&last=v10>; rel=\"next\"");
    assert_eq!(page.text().await.unwrap(), r#"{"name":"a","tags":["v1","v10"]}"#);
    let page = send("GET", registry.url("/v2/a/tags/list?n=2&last=v10")).await;
    assert!(page.headers().get("link").is_none());
    assert_eq!(page.text().await.unwrap(), r#"{"name":"a","tags":["v2"]}"#);
    assert_eq!(code(send("GET", registry.url("/v2/none/tags/list")).await).await, "NAME_UNKNOWN");
    let catalog = send("GET", registry.url("/v2/_catalog")).await.text().await.unwrap();
    assert_eq!(catalog, r#"{"repositories":["a"]}"#);

    let sbom = manifest(config, layer, Some(&digest));
    let put = put_manifest(&registry, &format!("/v2/a/manifests/{}", Digest::of(&sbom)), &sbom).await;
    assert_eq!(header(&put, "oci-subject"), digest.as_str());
    let referrers =
        send("GET", registry.url(&format!("/v2/a/referrers/{digest}?artifactType=test/sbom"))).await;
    assert_eq!(header(&referrers, "oci-filters-applied"), "artifactType");
    let index: Value = serde_json::from_slice(&referrers.bytes().await.unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], Digest::of(&sbom).as_str());
    assert_eq!(index["manifests"][0]["artifactType"], "test/sbom");

    // A layer that an image needs stays, whoever asks.
    let used = registry.url(&format!("/v2/a/blobs/{}", Digest::of(layer)));
    assert_eq!(code(send("DELETE", used.clone()).await).await, "DENIED");
    assert_eq!(send("DELETE", registry.url("/v2/a/manifests/v1")).await.status(), StatusCode::ACCEPTED);
    assert_eq!(code(send("GET", registry.url("/v2/a/manifests/v1")).await).await, "MANIFEST_UNKNOWN");
    assert_eq!(send("GET", registry.url("/v2/a/manifests/v2")).await.status(), StatusCode::OK);
    for gone in [&digest, &Digest::of(&sbom)] {
        assert_eq!(
            send("DELETE", registry.url(&format!("/v2/a/manifests/{gone}"))).await.status(),
            StatusCode::ACCEPTED
        );
    }
    assert_eq!(send("GET", registry.url("/v2/a/manifests/v2")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send("DELETE", used).await.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn blobs_of_other_repositories_are_mounted() {
    let registry = Registry::start().await;
    let digest = push_blob(&registry, "a", b"shared").await;
    let mounted = send("POST", registry.url(&format!("/v2/b/blobs/uploads/?mount={digest}&from=a"))).await;
    assert_eq!(mounted.status(), StatusCode::CREATED);
    assert_eq!(header(&mounted, "location"), format!("/v2/b/blobs/{digest}"));
    // What is not here is to be uploaded.
    let absent =
        send("POST", registry.url(&format!("/v2/b/blobs/uploads/?mount={}&from=a", Digest::of(b"x")))).await;
    assert_eq!(absent.status(), StatusCode::ACCEPTED);
    let base = send("GET", registry.url("/v2/")).await;
    assert_eq!(
        (base.status(), header(&base, "docker-distribution-api-version")),
        (StatusCode::OK, "registry/2.0")
    );
}
