#!/bin/bash
# build-kube.sh [FOLDER]: builds the Kubernetes API server for tests/cluster from a Debian mirror.
#
# Creates FOLDER/bin/{etcd,kube-apiserver,kube-controller-manager}. FOLDER defaults to the cache of the tests.
# Installs nothing on the machine. Takes about three minutes on two cores, and downloads 130 MB.
# Builds at the same time wait for each other. A failed build leaves no FOLDER.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/kdeploy-tests/kube-1.20.2}
release=bookworm # the last Debian whose Kubernetes package contains the API server
version=v1.20.2  # the version of that package, and the oldest that kdeploy supports
programs=(kube-apiserver kube-controller-manager)

for needed in apt-get dpkg flock tar; do
  command -v "$needed" > /dev/null || { echo "build-kube.sh: $needed not found; this script needs Debian's packages" >&2; exit 2; }
done
mkdir -p "$(dirname "$folder")"
exec 9> "$folder.lock"
flock 9
if [ -x "$folder/bin/kube-controller-manager" ]; then exit 0; fi

part=$(mktemp -d "$folder.part.XXXXXX")
# Go makes the modules that it unpacks read-only, so that rm could not remove them.
trap 'chmod -R u+w "$part"; rm -rf "$part"' EXIT
mkdir -p "$part"/{apt/lists/partial,apt/cache/archives/partial,downloads,root,go/src/k8s.io,kubernetes,done/bin}

# apt uses lists and caches in this folder, so neither root nor the machine's sources are needed.
indexed=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sort -u)
mirror=${DEBIAN_MIRROR:-$(awk -v r="$release" '$2 == r && !/security/ {print $1; exit}' <<< "$indexed")}
mirror=${mirror:-http://deb.debian.org/debian}
signed=/usr/share/keyrings/debian-archive-keyring.gpg
for kind in deb deb-src; do echo "$kind [signed-by=$signed] $mirror $release main"; done > "$part/apt/sources.list"
apt=(apt-get -qq
  -o "Dir::Etc::sourcelist=$part/apt/sources.list" -o Dir::Etc::sourceparts=-
  -o "Dir::State::Lists=$part/apt/lists" -o "Dir::Cache=$part/apt/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
cd "$part/downloads"
"${apt[@]}" download "golang-1.19-go/$release" "golang-1.19-src/$release" "etcd-server/$release" \
  "golang-github-modern-go-reflect2-dev/$release"
"${apt[@]}" source --download-only --only-source "kubernetes/$release"
for package in *.deb; do dpkg -x "$package" "$part/root"; done
install "$part/root/usr/bin/etcd" "$part/done/bin/etcd"
tar -xzf kubernetes_*.orig.tar.gz -C "$part/kubernetes" --strip-components=1
cd "$part/kubernetes"

# This Kubernetes was written for Go 1.15. With Go 1.19, two of its vendored libraries fail:
# reflect2 reads maps by an old layout, and the server crashes. Debian's newer reflect2 replaces it.
reflect2=vendor/github.com/modern-go/reflect2
rm -f "$reflect2"/*.go "$reflect2"/*.s
cp "$part"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2/"
rm -f "$reflect2"/*_test.go
# kube-openapi compares two reflect.Values and treats an empty string as null. A newer comparison replaces it.
sed -i 's/if data == nil || reflect\.DeepEqual(reflect\.Zero(reflect\.TypeOf(data)), reflect\.ValueOf(data)) {/if data == nil {/' \
  vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go

export GOROOT="$part/root/usr/lib/go-1.19" GOPATH="$part/go" GOCACHE="$part/go/cache" HOME="$part"
export GO111MODULE=off CGO_ENABLED=0 GOFLAGS=-trimpath
export PATH="$GOROOT/bin:$PATH"
ln -s "$part/kubernetes" "$GOPATH/src/k8s.io/kubernetes"
cd "$GOPATH/src/k8s.io/kubernetes"

# The package lacks one generated file: the OpenAPI description of the types.
nice go build -o "$part/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
described() {
  find cmd pkg plugin -name '*.go'
  find -L vendor/k8s.io -name '*.go' -not -path '*/_examples/*' -not -path '*/testdata/*' \
    -not -path 'vendor/k8s.io/code-generator/*' -not -path 'vendor/k8s.io/sample-apiserver/*'
}
packages=$(described | xargs grep -l '^// *+k8s:openapi-gen=' | xargs -n1 dirname | LC_ALL=C sort -u |
  sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
nice "$part/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
  -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$part/violations"

stamps=
for package in component-base/version client-go/pkg/version; do
  for stamp in "gitVersion=$version" gitMajor=1 gitMinor=20 gitTreeState=clean gitCommit=none buildDate=2021-01-13T00:00:00Z; do
    stamps="$stamps -X k8s.io/kubernetes/vendor/k8s.io/$package.$stamp"
  done
done
for program in "${programs[@]}"; do
  nice go build -tags providerless -ldflags "-s -w$stamps" -o "$part/done/bin/$program" "./cmd/$program"
done
mv "$part/done" "$folder"
