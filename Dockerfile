# AGoQ for the CPUs of machines where nothing can be installed.
#
#   docker build -t agoq .
#   docker run --rm -v "$PWD:/data" agoq train --config /opt/agoq/examples/demo.toml --data-path text.txt --save runs/first
#
# A cluster with Apptainer (Singularity) takes the same image; it runs as the user who calls it, needs no root and no
# daemon, and sees the home and the current folder:
#   docker save agoq -o agoq.tar && apptainer build agoq.sif docker-archive:agoq.tar
#   apptainer run agoq.sif train ...            srun apptainer run agoq.sif train ...
#
# Another base, Debian 12 or Ubuntu 22.04 and later:  --build-arg BASE=ubuntu:24.04
# A CPU of one kind throughout the cluster:           --build-arg CPU=x86-64-v4  (or sapphirerapids, znver4, ...)
ARG BASE=debian:12

FROM ${BASE} AS build
ARG CPU=x86-64-v3
WORKDIR /opt/agoq
# Packages change less often than sources: these layers are kept from build to build.
COPY tools/install.sh tools/venv.sh tools/
RUN tools/install.sh build
COPY python/ python/
RUN tools/venv.sh
COPY . .
# The native machine is the one that builds, not the one that runs.
RUN cmake -G Ninja -S . -B build -DAGOQ_NATIVE=OFF -DAGOQ_TESTS=OFF -DCMAKE_CXX_FLAGS="-march=${CPU}" \
 && cmake --build build --target agoq
# What the program loads, as packages: they are named differently in every distribution.
RUN ldd build/agoq | awk '/=> \// { print $3 }' | xargs readlink -f \
  | while read -r library; do dpkg -S "$library" "${library#/usr}" 2>/dev/null | cut -d: -f1 | head -n 1; done \
  | sort -u > build/runtime-packages

FROM ${BASE}
COPY --from=build /opt/agoq/build/runtime-packages /tmp/
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive xargs -a /tmp/runtime-packages apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /tmp/runtime-packages
# The same places as in a checkout, so that the program finds Python and the examples as it does there.
WORKDIR /opt/agoq
COPY --from=build /opt/agoq/build/agoq build/agoq
COPY --from=build /opt/agoq/.venv .venv
COPY --from=build /opt/agoq/python python
COPY --from=build /opt/agoq/examples examples
RUN ln -s /opt/agoq/build/agoq /usr/local/bin/agoq && useradd --create-home agoq
USER agoq
WORKDIR /data
ENTRYPOINT ["agoq"]
CMD ["--help"]
