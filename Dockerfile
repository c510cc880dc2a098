# The components' image and the sidecar's, for those who build with Docker; `ebb image export FILE` makes the same two without.
#
#   docker build -t REGISTRY/ebb:VERSION .
#   docker build -t REGISTRY/ebb-queue-proxy:VERSION --target queue-proxy .
#   ebb install --image-prefix REGISTRY --image-tag VERSION

FROM rust:1.95.0-bookworm AS build
# The image's own: rust-toolchain.toml wants rustfmt and clippy too, which rustup would fetch.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p ebb --bin ebb && \
    cp target/release/ebb /ebb && \
    find target -path '*/sidecar/queue-proxy' -type f -perm -u+x -exec cp {} /queue-proxy \;
RUN mkdir -p /root-fs/tmp /root-fs/etc/ssl/certs && chmod 1777 /root-fs/tmp && \
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >/root-fs/etc/passwd && \
    printf 'root:x:0:\nnonroot:x:65532:\n' >/root-fs/etc/group && \
    cp /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/ && \
    ldd /ebb | grep -o '/[^ ]*' | while read -r library; do \
      mkdir -p "/root-fs$(dirname "$library")" && cp -L "$library" "/root-fs$library"; done

FROM scratch AS queue-proxy
COPY --from=build /root-fs/etc /etc
COPY --from=build /root-fs/tmp /tmp
COPY --from=build /queue-proxy /queue-proxy
USER 65532:65532
ENTRYPOINT ["/queue-proxy"]

FROM scratch
COPY --from=build /root-fs /
COPY --from=build /ebb /ebb
USER 65532:65532
ENTRYPOINT ["/ebb"]
