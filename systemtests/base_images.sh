#!/usr/bin/env bash
# Usage: base_images.sh FOLDER
#
# Makes from Debian's packages the two images that the compose file builds upon, under the names by
# which it asks for them, in the engine of DOCKER_HOST: so that it is tested as it is where no image
# registry is reached. FOLDER keeps the Debian root for the next time. Needs root, debootstrap and
# prometheus. pip's settings of this machine (certificates, a folder of wheels) hold in builds too.
set -euo pipefail
PYTHON_IMAGE=python:3.11-slim-bookworm
PROMETHEUS_IMAGE=$(sed -n 's|^ *image: \(prom/prometheus:.*\)|\1|p' "$(dirname "$0")/../docker-compose.yml")
folder=$1
root=$folder/bookworm
mkdir -p "$folder"

if [ ! -e "$root.tar" ]; then
	rm -rf "$root"
	debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates \
		bookworm "$root" >"$folder/debootstrap.log"
	ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
	rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
	tar -C "$root" -cf "$root.tar.part" .
	mv "$root.tar.part" "$root.tar"
	rm -rf "$root"
fi
docker import --change 'CMD ["python3"]' - plain-python <"$root.tar" >/dev/null

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/wheels"
cp /etc/ssl/certs/ca-certificates.crt "$context/"
wheels=$(python3 -m pip config get global.find-links 2>/dev/null || true)
[ ! -d "$wheels" ] || cp "$wheels"/*.whl "$context/wheels/"
docker build -q -t "$PYTHON_IMAGE" -f - "$context" >/dev/null 2>"$folder/build.log" <<-'END'
	FROM plain-python
	COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
	COPY wheels /wheels
	RUN printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nfind-links = /wheels\n' >/etc/pip.conf
END

cp /usr/bin/prometheus "$context/"
docker build -q -t "$PROMETHEUS_IMAGE" -f - "$context" >/dev/null 2>"$folder/build.log" <<-'END'
	FROM plain-python
	COPY prometheus /bin/prometheus
	RUN install -d -o nobody -g nogroup /prometheus
	WORKDIR /prometheus
	VOLUME /prometheus
	USER nobody
	ENTRYPOINT ["/bin/prometheus"]
	CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
END
