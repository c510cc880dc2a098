use hickory_proto::{
    op::Query,
    rr::{DNSClass, Name, RData, RecordType},
};
use serde_json::json;

use super::*;
use crate::index::tests::{service, slice};

fn index() -> Arc<Index> {
    let index = Index::default();
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    index.put_service(service("ns", "web", json!({"clusterIP": "10.9.0.7", "ports": ports})));
    index.put_service(service(
        "ns",
        "db",
        json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
    ));
    index.put_service(service("ns", "idle", json!({"clusterIP": "None"})));
    index.put_service(service("ns", "out", json!({"type": "ExternalName", "externalName": "example.com"})));
    let alias = json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local"});
    index.put_service(service("ns", "alias", alias));
    index.put_service(service(
        "ns",
        "far",
        json!({"type": "ExternalName", "externalName": "a.b.svc.example"}),
    ));
    let twice = json!({"type": "ExternalName", "externalName": "alias.ns.svc.cluster.local."});
    index.put_service(service("ns", "twice", twice));
    let circle = json!({"type": "ExternalName", "externalName": "circle.ns.svc.cluster.local"});
    index.put_service(service("ns", "circle", circle));
    let endpoints =
        [("10.8.0.1", Some("db-0"), true), ("10.8.0.2", None, true), ("10.8.0.3", Some("db-2"), false)];
    index.put_slice(slice("ns", "db-1", "db", 5432, &endpoints));
    Arc::new(index)
}

fn server(index: Arc<Index>, upstreams: Vec<SocketAddr>) -> Arc<Server> {
    let zone =
        Zone::new("cluster.local", vec!["10.8.0.0/16".parse().unwrap(), "10.9.0.0/16".parse().unwrap()]);
    Arc::new(Server::new(index, zone, upstreams))
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut question = Query::query(Name::from_ascii(name).unwrap(), kind);
    question.set_query_class(DNSClass::IN);
    message.add_query(question);
    message
}

/// Code and data of the answer, as text.
fn ask(server: &Server, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let query = query(name, kind);
    let Reply::Now(bytes) = server.reply(&query.to_vec().unwrap(), false) else {
        panic!("{name} is not answered here")
    };
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    assert_eq!(answer.queries, query.queries);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    if answer.answers.is_empty() {
        let RData::SOA(soa) = &answer.authorities[0].data else { panic!("no SOA for {name}") };
        assert_eq!((soa.minimum, answer.authorities[0].ttl), (1, 1));
    }
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

#[test]
fn table() {
    use RecordType as T;
    use ResponseCode::{NXDomain, NoError};
    let server = server(index(), Vec::new());
    let cases: &[(&str, T, ResponseCode, &[&str])] = &[
        ("web.ns.svc.cluster.local.", T::A, NoError, &["10.9.0.7"]),
        ("WEB.ns.SVC.cluster.local.", T::A, NoError, &["10.9.0.7"]),
        ("web.ns.svc.cluster.local.", T::AAAA, NoError, &[]),
        ("web.ns.svc.cluster.local.", T::TXT, NoError, &[]),
        ("nobody.ns.svc.cluster.local.", T::A, NXDomain, &[]),
        ("web.other.svc.cluster.local.", T::A, NXDomain, &[]),
        ("x.web.ns.svc.cluster.local.", T::A, NXDomain, &[]),
        ("db.ns.svc.cluster.local.", T::A, NoError, &["10.8.0.1", "10.8.0.2"]),
        ("db-0.db.ns.svc.cluster.local.", T::A, NoError, &["10.8.0.1"]),
        ("10-8-0-2.db.ns.svc.cluster.local.", T::A, NoError, &["10.8.0.2"]),
        ("db-2.db.ns.svc.cluster.local.", T::A, NXDomain, &[]),
        ("db-0.db.ns.svc.cluster.local.", T::AAAA, NoError, &[]),
        ("idle.ns.svc.cluster.local.", T::A, NoError, &[]),
        ("out.ns.svc.cluster.local.", T::CNAME, NoError, &["example.com."]),
        ("alias.ns.svc.cluster.local.", T::A, NoError, &["web.ns.svc.cluster.local.", "10.9.0.7"]),
        ("alias.ns.svc.cluster.local.", T::CNAME, NoError, &["web.ns.svc.cluster.local."]),
        (
            "twice.ns.svc.cluster.local.",
            T::A,
            NoError,
            &["alias.ns.svc.cluster.local.", "web.ns.svc.cluster.local.", "10.9.0.7"],
        ),
        ("_http._tcp.web.ns.svc.cluster.local.", T::SRV, NoError, &["0 100 80 web.ns.svc.cluster.local."]),
        ("_dns._udp.web.ns.svc.cluster.local.", T::SRV, NoError, &["0 100 53 web.ns.svc.cluster.local."]),
        ("_dns._tcp.web.ns.svc.cluster.local.", T::SRV, NXDomain, &[]),
        ("_http._tcp.web.ns.svc.cluster.local.", T::A, NoError, &[]),
        (
            "_http._tcp.db.ns.svc.cluster.local.",
            T::SRV,
            NoError,
            &["0 100 5432 db-0.db.ns.svc.cluster.local.", "0 100 5432 10-8-0-2.db.ns.svc.cluster.local."],
        ),
        ("10-1-2-3.ns.pod.cluster.local.", T::A, NoError, &["10.1.2.3"]),
        ("nonsense.ns.pod.cluster.local.", T::A, NXDomain, &[]),
        ("ns.svc.cluster.local.", T::A, NoError, &[]),
        ("other.svc.cluster.local.", T::A, NXDomain, &[]),
        ("svc.cluster.local.", T::A, NoError, &[]),
        ("cluster.local.", T::A, NoError, &[]),
        ("cluster.local.", T::NS, NoError, &["ns.dns.cluster.local."]),
        ("example.com.ns.svc.cluster.local.", T::A, NXDomain, &[]),
        ("whatever.cluster.local.", T::A, NXDomain, &[]),
        ("dns-version.cluster.local.", T::TXT, NoError, &["1.1.0"]),
        ("7.0.9.10.in-addr.arpa.", T::PTR, NoError, &["web.ns.svc.cluster.local."]),
        ("1.0.8.10.in-addr.arpa.", T::PTR, NoError, &["db-0.db.ns.svc.cluster.local."]),
        ("9.9.9.10.in-addr.arpa.", T::PTR, NXDomain, &[]),
    ];
    for (name, kind, code, data) in cases {
        assert_eq!(
            ask(&server, name, *kind),
            (*code, data.iter().map(|&d| d.to_owned()).collect()),
            "{kind} {name}"
        );
    }
    let (_, circle) = ask(&server, "circle.ns.svc.cluster.local.", T::A);
    assert!(circle.len() <= 8, "a circle ends");
}

#[test]
fn a_name_counts_at_once() {
    let index = index();
    let server = server(Arc::clone(&index), Vec::new());
    assert_eq!(ask(&server, "late.ns.svc.cluster.local.", RecordType::A).0, ResponseCode::NXDomain);
    index.put_service(service("ns", "late", json!({"clusterIP": "10.9.0.9"})));
    assert_eq!(ask(&server, "late.ns.svc.cluster.local.", RecordType::A).1, ["10.9.0.9"]);
}

#[test]
fn others_names_are_forwarded_and_bad_queries_refused() {
    let server = server(index(), Vec::new());
    for (name, kind) in [("example.com.", RecordType::A), ("1.2.0.192.in-addr.arpa.", RecordType::PTR)] {
        assert!(
            matches!(server.reply(&query(name, kind).to_vec().unwrap(), false), Reply::Forward),
            "{name}"
        );
    }
    assert!(matches!(server.reply(&[1], false), Reply::Drop));
    let Reply::Now(bytes) = server.reply(&[1, 2, 3], false) else { panic!("not answered") };
    assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn what_is_too_large_for_udp_is_truncated_and_whole_over_tcp() {
    let index = index();
    let addresses: Vec<String> = (0..90).map(|n| format!("10.8.1.{n}")).collect();
    let endpoints: Vec<_> = addresses.iter().map(|address| (address.as_str(), None, true)).collect();
    index.put_slice(slice("ns", "many", "idle", 80, &endpoints));
    let server = server(index, Vec::new());
    let query = query("idle.ns.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let answer = |tcp| match server.reply(&query, tcp) {
        Reply::Now(bytes) => Message::from_vec(&bytes).unwrap(),
        _ => panic!("not answered"),
    };
    assert!(answer(false).metadata.truncation);
    assert_eq!(answer(true).answers.len(), 90);
}

#[tokio::test]
async fn over_udp_and_tcp_and_through_an_upstream() {
    // The upstream is another such server for another zone.
    let shutdown = CancellationToken::new();
    let upstream = Index::default();
    upstream.put_service(service("b", "a", json!({"clusterIP": "192.0.2.5"})));
    let upstream = Arc::new(Server::new(Arc::new(upstream), Zone::new("example", Vec::new()), Vec::new()));
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let behind = sockets.address();
    let first = tokio::spawn(upstream.run(sockets, shutdown.clone()));
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = sockets.address();
    let second = tokio::spawn(server(index(), vec![behind]).run(sockets, shutdown.clone()));

    let names = [
        ("web.ns.svc.cluster.local.", "10.9.0.7"),
        ("a.b.svc.example.", "192.0.2.5"),
        ("far.ns.svc.cluster.local.", "192.0.2.5"),
    ];
    for (name, expected) in names {
        let query = query(name, RecordType::A).to_vec().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&query, address).await.unwrap();
        let mut buffer = [0; 2048];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(
            Message::from_vec(&buffer[..length]).unwrap().answers.last().unwrap().data.to_string(),
            expected
        );

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
        client.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(client.read_u16().await.unwrap())];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.last().unwrap().data.to_string(), expected);
    }
    shutdown.cancel();
    first.await.unwrap();
    second.await.unwrap();
}
