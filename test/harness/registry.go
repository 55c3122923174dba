package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is Debian's docker-registry on loopback in a machine's namespace.
type Registry struct {
	Address string // host:port
	Data    string // its files: blobs may be damaged there
	m       *Machine
}

// Registry starts a registry; it ends with the test.
func (m *Machine) Registry() *Registry {
	m.T.Helper()
	r := &Registry{Address: "127.0.0.1:5000", Data: filepath.Join(m.Dir, "registry"), m: m}
	StartRegistry(m.T, m.NS, r.Address, r.Data)
	return r
}

// On makes a registry that was started elsewhere push from m's namespace.
func (r *Registry) On(m *Machine) { r.m = m }

// StartRegistry serves a registry from dir at address, in ns (nil: here).
func StartRegistry(t testing.TB, ns *NetNS, address, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s/data}\n  delete: {enabled: true}\nhttp: {addr: %q}\n", dir, address)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	do := func(fn func()) { fn() }
	if ns != nil {
		do = ns.Do
	}
	do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatalf("%v (\"make setup\" installs docker-registry)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	Eventually(t, 20*time.Second, "the registry answers", func() bool {
		var c net.Conn
		var err error
		do(func() { c, err = net.Dial("tcp", address) })
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// Push writes an image and pushes it with skopeo; it returns its reference.
func (r *Registry) Push(name string, config v1.ImageConfig, layers ...Layer) string {
	r.m.T.Helper()
	dir := filepath.Join(r.m.Dir, "layout-"+name)
	WriteLayout(r.m.T, dir, config, layers...)
	r.PushLayout(dir, name)
	return r.Address + "/" + name + ":latest"
}

// PushLayout pushes the image "latest" of an OCI layout.
func (r *Registry) PushLayout(dir, name string) {
	r.m.T.Helper()
	r.m.Sh("skopeo copy --quiet --insecure-policy --dest-tls-verify=false oci:%s:latest docker://%s/%s:latest", dir, r.Address, name)
}

// Busybox pushes and pulls the image that most tests run; it returns its reference.
func (m *Machine) Busybox() string {
	m.T.Helper()
	ref := m.Registry().Push("busybox", v1.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, BusyboxLayer(m.T))
	m.Must("pull", "-q", ref)
	return ref
}
