//! Images from one store to another, over real sockets and by files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use cluster_images::{ImageError, Origin, PullPolicy, RegistryAuth, Store};
use common::{Registry, content, noise, other};
use futures::StreamExt;
use http::{StatusCode, header};

/// Requests by method and kind of path.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<HashMap<String, usize>>>);

impl Counted {
    fn wrap(&self, router: Router) -> Router {
        let counted = self.clone();
        router.layer(from_fn(move |request: Request, next: Next| {
            let kind = request.uri().path().split('/').rev().nth(1).unwrap_or_default().to_owned();
            *counted.0.lock().unwrap().entry(format!("{} {kind}", request.method())).or_default() += 1;
            next.run(request)
        }))
    }

    fn get(&self, what: &str) -> usize {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

#[tokio::test]
async fn an_image_pushed_is_pulled_once_however_many_ask() {
    let counted = Counted::default();
    let watch = counted.clone();
    let registry = Registry::start_with(|router| watch.wrap(router)).await;
    let (_built, builder) = other();
    let program = noise(3 << 20, 3);
    let digest = builder.import_binary(&program, "hello:v1", "/app/hello", &["/app/hello"]).unwrap();
    let pushed = builder.push("hello:v1", &registry.name("hello:v1"), &[]).await.unwrap();
    assert_eq!(pushed, digest);
    // Pushing again sends no blob.
    let before = counted.get("PUT uploads");
    builder.push("hello:v1", &registry.name("hello:v1"), &[]).await.unwrap();
    assert_eq!(counted.get("PUT uploads"), before);

    let (_dir, store) = other();
    let name = registry.name("hello:v1");
    let asked = (0..20).map(|_| store.ensure(&name, PullPolicy::IfNotPresent, &[], None));
    let images = futures::future::try_join_all(asked).await.unwrap();
    assert_eq!(counted.get("GET manifests"), 1);
    assert_eq!(counted.get("GET blobs"), 2, "a config and a layer");
    let image = &images[0];
    assert_eq!((image.digest.as_str(), image.reference.as_str()), (digest.as_str(), name.as_str()));
    assert_eq!(std::fs::read(image.layers[0].join("app/hello")).unwrap(), program);
    assert_eq!(image.config.config().as_ref().unwrap().entrypoint().as_ref().unwrap(), &["/app/hello"]);

    // By digest, from what is here, without a request.
    let by_digest = format!("{}@{digest}", registry.name("hello"));
    store.ensure(&by_digest, PullPolicy::Always, &[], None).await.unwrap();
    assert_eq!(counted.get("GET manifests"), 1);
    let list = store.list();
    assert_eq!((list.len(), list[0].tag.as_str(), list[0].origin), (1, "v1", Origin::Pulled));
    assert!(list[0].size > 3 << 20);
    // All of it is there after a restart.
    let root = store.root().to_path_buf();
    drop((images, store));
    let store = Store::open(&root).unwrap();
    store.ensure(&name, PullPolicy::Never, &[], None).await.unwrap();
}

#[tokio::test]
async fn policies_decide_when_the_registry_is_asked() {
    let registry = Registry::start().await;
    let (_dir, store) = other();
    let name = registry.name("app:v1");
    let first = registry.store.import_binary(b"one", "app:v1", "/app", &["/app"]).unwrap();
    let ensure = async |policy| store.ensure(&name, policy, &[], None).await.map(|image| image.digest);
    assert!(matches!(ensure(PullPolicy::Never).await, Err(ImageError::NeverPull { .. })));
    assert_eq!(ensure(PullPolicy::IfNotPresent).await.unwrap(), first);
    let second = registry.store.import_binary(b"two", "app:v1", "/app", &["/app"]).unwrap();
    assert_eq!(ensure(PullPolicy::IfNotPresent).await.unwrap(), first);
    assert_eq!(ensure(PullPolicy::Always).await.unwrap(), second);
    assert_eq!(ensure(PullPolicy::Never).await.unwrap(), second);
    // What was built here wins, whatever the policy: nowhere else could it come from.
    let built = store.import_binary(b"three", "app:v1", "/app", &["/app"]).unwrap();
    for name in [name.as_str(), "app:v1", "docker.io/library/app:v1", "localhost:1/app:v1"] {
        assert_eq!(store.ensure(name, PullPolicy::Always, &[], None).await.unwrap().digest, built, "{name}");
    }
    store.tag("app:v1", "other/app:v2").unwrap();
    assert_eq!(store.ensure("other/app:v2", PullPolicy::Never, &[], None).await.unwrap().digest, built);
    store.remove("app:v1").unwrap();
    assert_eq!(ensure(PullPolicy::Never).await.unwrap(), second);
}

#[tokio::test]
async fn a_pull_that_breaks_off_is_resumed() {
    let breaks = Arc::new(AtomicUsize::new(0));
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (count, seen) = (breaks.clone(), ranges.clone());
    let registry = Registry::start_with(|router| {
        router.layer(from_fn(move |request: Request, next: Next| {
            let (count, seen) = (count.clone(), seen.clone());
            async move {
                let range = request.headers().get(header::RANGE).map(|r| r.to_str().unwrap().to_owned());
                let response = next.run(request).await;
                let length = response
                    .headers()
                    .get(header::CONTENT_LENGTH)
                    .and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
                if length.is_none_or(|l| l < 1 << 20) {
                    return response;
                }
                seen.lock().unwrap().extend(range);
                if count.fetch_add(1, Ordering::SeqCst) >= 3 {
                    return response;
                }
                // Some of it, and then the connection breaks.
                let (parts, body) = response.into_parts();
                let mut left = 600_000_usize;
                let broken = body.into_data_stream().map(move |chunk| {
                    let chunk = chunk.map_err(std::io::Error::other)?;
                    left = left
                        .checked_sub(chunk.len())
                        .ok_or_else(|| std::io::Error::other("broken by the test"))?;
                    Ok::<_, std::io::Error>(chunk)
                });
                Response::from_parts(parts, Body::from_stream(broken))
            }
        }))
    })
    .await;
    let program = noise(4 << 20, 4);
    registry.store.import_binary(&program, "big:v1", "/app", &["/app"]).unwrap();
    let (_dir, store) = other();
    let (events, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let image =
        store.ensure(&registry.name("big:v1"), PullPolicy::IfNotPresent, &[], Some(events)).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("app")).unwrap(), program);
    assert_eq!(breaks.load(Ordering::SeqCst), 4);
    let ranges = ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 3, "each attempt after the first asks for the rest only: {ranges:?}");
    assert!(ranges.iter().all(|r| r.starts_with("bytes=") && r != "bytes=0-"));
    let mut events = Vec::new();
    while let Ok(event) = progress.try_recv() {
        events.push(event);
    }
    assert!(
        events
            .iter()
            .any(|e| matches!(e, cluster_images::Progress::Downloading { done, total, .. } if done == total))
    );
}

#[tokio::test]
async fn other_content_than_was_named_is_refused() {
    let registry = Registry::start_with(|router| {
        router.layer(from_fn(|request: Request, next: Next| async move {
            let blob = request.uri().path().contains("/blobs/");
            let (mut parts, body) = next.run(request).await.into_parts();
            let mut bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
            if blob && bytes.len() > 4096 {
                bytes[2000] ^= 1;
            }
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(bytes))
        }))
    })
    .await;
    registry.store.import_binary(&noise(100_000, 5), "app:v1", "/app", &["/app"]).unwrap();
    let (dir, store) = other();
    let error =
        store.ensure(&registry.name("app:v1"), PullPolicy::IfNotPresent, &[], None).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error:?}");
    // The config may have been under way.
    let mut left = std::fs::read_dir(dir.path().join("partial")).unwrap();
    assert!(left.all(|f| f.unwrap().metadata().unwrap().len() < 4096), "it must not be resumed");
    assert!(store.list().is_empty());
}

#[tokio::test]
async fn failures_say_what_is_wrong() {
    let registry = Registry::start().await;
    let (_dir, store) = other();
    let ensure =
        async |name: &str| store.ensure(name, PullPolicy::IfNotPresent, &[], None).await.unwrap_err();
    let absent = ensure(&registry.name("none:v1")).await;
    assert!(matches!(absent, ImageError::NotFound { .. }), "{absent:?}");
    registry.store.import_binary(b"x", "app:v1", "/app", &["/app"]).unwrap();
    let no_tag = ensure(&registry.name("app:v2")).await;
    assert!(matches!(no_tag, ImageError::NotFound { .. }), "{no_tag:?}");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let unreachable = ensure(&format!("{closed}/app:v1")).await;
    assert!(matches!(unreachable, ImageError::Unreachable { .. }), "{unreachable:?}");
    assert!(unreachable.to_string().contains("refused"), "the cause must be in: {unreachable}");
    assert_eq!(ensure("Not A Name").await.reason(), "InvalidImageName");
    // Its own registry is known without asking.
    store.set_own_registries([closed.to_string()]);
    let own = ensure(&format!("{closed}/app:v1")).await;
    assert!(matches!(own, ImageError::NotFound { .. }), "{own:?}");
    assert!(Store::open(store.root()).unwrap_err().to_string().contains("in use by another process"));
}

fn protected(router: Router) -> Router {
    router.layer(from_fn(|request: Request, next: Next| async move {
        // base64 of "user:secret"
        let right =
            request.headers().get(header::AUTHORIZATION).is_some_and(|a| a == "Basic dXNlcjpzZWNyZXQ=");
        if right {
            return next.run(request).await;
        }
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")]).into_response()
    }))
}

#[tokio::test]
async fn pull_secrets_open_a_registry() {
    let registry = Registry::start_with(protected).await;
    registry.store.import_binary(b"x", "app:v1", "/app", &["/app"]).unwrap();
    let (_dir, store) = other();
    let secret = |auth: &str, path: &str| {
        let json = format!(r#"{{"auths":{{"http://{}{path}":{{"auth":"{auth}"}}}}}}"#, registry.address);
        RegistryAuth::from_dockerconfigjson(json.as_bytes()).unwrap()
    };
    let (wrong, right) = (secret("dXNlcjp3cm9uZw==", "/app"), secret("dXNlcjpzZWNyZXQ=", ""));
    let name = registry.name("app:v1");
    for auths in [&[][..], &wrong] {
        let error = store.ensure(&name, PullPolicy::IfNotPresent, auths, None).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("imagePullSecrets"));
    }
    // The more specific one fails, the next is tried.
    let both = [wrong, right].concat();
    store.ensure(&name, PullPolicy::IfNotPresent, &both, None).await.unwrap();
}

#[tokio::test]
async fn archives_keep_digests_and_names() {
    let (dir, store) = other();
    let one = store.import_binary(b"one", "one:v1", "/app", &["/app"]).unwrap();
    let two = store.import_binary(b"two", "team/two:v2", "/app", &["/app"]).unwrap();
    let file = dir.path().join("images.tar");
    store.export(&["one:v1", "team/two:v2"], &file).await.unwrap();
    let again = dir.path().join("again.tar");
    store.export(&["one:v1", "team/two:v2"], &again).await.unwrap();
    assert_eq!(
        std::fs::read(&file).unwrap(),
        std::fs::read(&again).unwrap(),
        "the same images make the same bytes"
    );

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &std::fs::read(&file).unwrap()).unwrap();
    let zipped = dir.path().join("images.tar.gz");
    std::fs::write(&zipped, gzip.finish().unwrap()).unwrap();
    let folder = dir.path().join("layout");
    tar::Archive::new(std::fs::File::open(&file).unwrap()).unpack(&folder).unwrap();
    for source in [&file, &zipped, &folder] {
        let (_other, loaded) = other();
        let names = loaded.load_archive(source, None).await.unwrap();
        assert_eq!(names, ["one:v1", "team/two:v2"]);
        let image = loaded.ensure("one:v1", PullPolicy::Always, &[], None).await.unwrap();
        assert_eq!((image.digest.as_str(), content(&image.layers, "app").as_str()), (one.as_str(), "one"));
        assert_eq!(loaded.ensure("team/two:v2", PullPolicy::Never, &[], None).await.unwrap().digest, two);
        let both = loaded.load_archive(source, Some("x:v1")).await.unwrap_err();
        assert!(both.to_string().contains("2 images"), "{both}");
    }

    // The same as docker alone reads it.
    for gone in ["index.json", "oci-layout"] {
        std::fs::remove_file(folder.join(gone)).unwrap();
    }
    let (_other, docker) = other();
    let mut names = docker.load_archive(&folder, None).await.unwrap();
    names.sort();
    assert_eq!(names, ["one:v1", "team/two:v2"]);
    let image = docker.ensure("one:v1", PullPolicy::Never, &[], None).await.unwrap();
    assert_eq!(content(&image.layers, "app"), "one");

    // Damaged, and not an archive at all.
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(3).rposition(|w| w == b"two").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (_other, empty) = other();
    let damaged = empty.load_archive(&file, None).await.unwrap_err();
    assert!(matches!(damaged, ImageError::Invalid { .. }), "{damaged:?}");
    std::fs::write(&file, "no archive").unwrap();
    assert!(matches!(
        empty.load_archive(&file, None).await,
        Err(ImageError::Invalid { .. } | ImageError::Io { .. })
    ));
    assert!(empty.list().is_empty());
}
