# The images hold one static binary each and the licences of what is linked into it, and nothing else: no shell, no package
# manager, no file that could be written. Binaries and licences are made before (`make images`), so that a build of the images
# needs no network and no toolchain.

FROM scratch AS manager
ARG TARGETARCH
ARG DIST=dist
ARG VERSION
LABEL org.opencontainers.image.title="datakeys-manager" \
      org.opencontainers.image.description="Controllers, pod injector and key service of Datakeys" \
      org.opencontainers.image.source="https://github.com/datakeys/datakeys" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY ${DIST}/linux-${TARGETARCH}/manager /manager
COPY --chmod=0444 LICENSE /licenses/LICENSE
COPY --chmod=0444 ${DIST}/linux-${TARGETARCH}/manager.licences /licenses/THIRD_PARTY
USER 65532:65532
ENTRYPOINT ["/manager"]

FROM scratch AS sidecar
ARG TARGETARCH
ARG DIST=dist
ARG VERSION
LABEL org.opencontainers.image.title="datakeys-sidecar" \
      org.opencontainers.image.description="Issues data keys to the pod it runs in, on a unix socket" \
      org.opencontainers.image.source="https://github.com/datakeys/datakeys" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# Nobody may read it: the kernel then keeps each process of it, from its first moment, from being looked into by others of
# its user (ptrace(2), "Ptrace access mode checking": not dumpable).
COPY --chmod=0111 ${DIST}/linux-${TARGETARCH}/sidecar /sidecar
COPY --chmod=0444 LICENSE /licenses/LICENSE
COPY --chmod=0444 ${DIST}/linux-${TARGETARCH}/sidecar.licences /licenses/THIRD_PARTY
USER 65532:65532
ENTRYPOINT ["/sidecar"]
