package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/test/harness"
)

// stray is the id of a container that there is not.
var stray = strings.Repeat("1", 64)

// difference is one that is planted.
type difference struct {
	name  string
	plant string // in a shell, in the machine's network namespace
	says  string
	undo  string // where it is not for gantry to mend
}

// TestCheckFindsDifferences plants one of each kind beside a container that runs. Each is named, nothing else is, and it is
// mended, or stays until its owner takes it away.
func TestCheckFindsDifferences(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "web", "--hostname", "web", "-p", "8080:80", image, "sh", "-c", serve)
	m.Must("system", "check")
	id := m.Must("inspect", "-f", "{{.Id}}", "web")
	link := m.Sh("ip -o link show type veth | grep -o 'gv[0-9a-f]*' | head -1")
	cgroup := m.Cgroups()[0]
	for _, d := range append(inDirectories(m), append(inNetwork(m, link), []difference{
		{
			name: "an empty cgroup of no name of ours", plant: "mkdir " + cgroup + "/junk",
			says: "containers.cgroups: cgroup " + m.Instance + "/junk: ",
		},
		{
			name: "a cgroup of a container that there is not", plant: "mkdir " + cgroup + "/" + stray,
			says: "containers.cgroups: container " + stray[:12] + ": it does not run, and its cgroup",
		},
		{
			name:  "a cgroup with a process in it",
			plant: "mkdir " + cgroup + "/junk; sleep 1000 >/dev/null 2>&1 & echo $! > " + m.Dir + "/pid; echo $! > " + cgroup + "/junk/cgroup.procs",
			says:  "containers.cgroups: cgroup " + m.Instance + "/junk: ",
			undo:  "kill -9 $(cat " + m.Dir + "/pid); while ! rmdir " + cgroup + "/junk 2>/dev/null; do sleep 0.05; done",
		},
		{
			name:  "a network namespace of a container that there is not",
			plant: "touch $STATE/netns/" + stray + "; mount --bind /proc/self/ns/net $STATE/netns/" + stray,
			says:  "containers.namespaces: container " + stray[:12] + ": ",
		},
		{
			name: "a snapshot that the store does not know", plant: "cd $ROOT/plugins/snapshotter/overlay/s; for s in *; do if grep -q " + id + " $s/record; then mkdir zzz zzz/fs zzz/work; sed s/" + id + "/planted/ $s/record > zzz/record; fi; done; $gantry plugin restart snapshotter/overlay",
			says: "snapshots.drivers: snapshot planted of overlay: the driver holds it",
		},
	}...)...) {
		m.Sh("STATE=%s; ROOT=%s; gantry='%s/gantry --host %s'; %s", m.State, m.Root, m.Bin, m.Host, d.plant)
		r := m.Try("system", "check")
		invariant, _, _ := strings.Cut(d.says, " ")
		lines := strings.Split(strings.TrimSpace(r.Out), "\n")
		if r.Code != 1 || !strings.HasPrefix(lines[0], d.says) || slices.ContainsFunc(lines, func(l string) bool { return !strings.HasPrefix(l, invariant) }) {
			t.Errorf("%s: exit %d, want %q\n%s", d.name, r.Code, d.says, r.All())
		}
		r = m.Try("system", "check", "--repair")
		if mended := strings.Contains(r.Out, "(mended)"); mended != (d.undo == "") || mended != (r.Code == 0) {
			t.Errorf("%s: repair: exit %d\n%s", d.name, r.Code, r.All())
		}
		if d.undo != "" {
			m.Sh("%s", d.undo)
		}
		if r := m.Try("system", "check"); r.Code != 0 {
			t.Fatalf("%s: afterwards: exit %d\n%s", d.name, r.Code, r.All())
		}
	}
	if out := fetch(m, true, harness.UplinkAddress+":8080"); out != "web" {
		t.Errorf("the container's page is %q after the repairs", out)
	}
	if out := m.Must("inspect", "-f", "{{.Id}} {{.State.Running}}", "web"); out != id+" true" {
		t.Errorf("the container went with the repairs: %q", out)
	}
}

// inDirectories are differences on the disk. What nobody of ours made is not for us to delete.
func inDirectories(m *harness.Machine) (all []difference) {
	for name, says := range map[string]string{
		m.Root + "/junk":                      "daemon.directories: file " + m.Root + "/junk: ",
		m.State + "/junk":                     "daemon.directories: file " + m.State + "/junk: ",
		m.Root + "/containers/junk":           "containers.directories: file " + m.Root + "/containers/junk: ",
		m.Root + "/content/blobs/sha256/junk": "images.blobs: file " + m.Root + "/content/blobs/sha256/junk: ",
	} {
		all = append(all, difference{name, "mkdir " + name, says, "rmdir " + name})
	}
	return append(all, difference{
		name: "a directory of a container that there is not", plant: "mkdir $ROOT/containers/" + stray + "; echo > $ROOT/containers/" + stray + "/config.json",
		says: "containers.directories: container " + stray[:12] + ": its directory",
	}, difference{
		name: "a state directory of a container that there is not", plant: "mkdir $STATE/c/" + stray,
		says: "containers.directories: container " + stray[:12] + ": it does not run, and its state directory",
	})
}

// inNetwork are differences in the kernel's account of the default network; link is an endpoint's.
func inNetwork(m *harness.Machine, link string) []difference {
	return []difference{
		{
			name: "a link off its bridge", plant: "ip link set " + link + " nomaster",
			says: "networks.host: endpoint ",
		},
		{
			name: "a link that is down", plant: "ip link set " + link + " down",
			says: "networks.host: endpoint ",
		},
		{
			name:  "a link of an endpoint that there is not",
			plant: "ip link add gvstray type veth peer name gvstray1; ip link set gvstray alias '" + m.Instance + " network n endpoint stray'",
			says:  "networks.endpoints: endpoint stray: driver bridge holds it",
		},
		{
			name: "a port that is not published any more", plant: "nft flush map inet " + m.Instance + " port-all",
			says: "networks.host: port *:8080/tcp of endpoint ",
		},
		{
			name:  "a port that is published for nobody",
			plant: "nft add element inet " + m.Instance + " port-all '{ tcp . 9999 comment \"nobody\" : '$(nft list map inet " + m.Instance + " port-all | grep -oE '[0-9]+(\\.[0-9]+){3}')' . 80 }'",
			says:  "networks.host: port *:9999/tcp of endpoint nobody: network bridge: it is published",
		},
		{
			name: "a rule table that went", plant: "nft delete table inet " + m.Instance,
			says: "networks.host: table inet " + m.Instance + ": ",
		},
	}
}

// TestCheckWhileBusy: what is under way is no difference.
func TestCheckWhileBusy(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	r := &harness.Registry{Address: "127.0.0.1:5000"}
	r.On(m)
	other := r.Push("other", v1.ImageConfig{Cmd: []string{"true"}}, harness.TarLayer(t, harness.File("data", strings.Repeat("x", 1<<20), 0o644)))
	stop := make(chan struct{})
	var work sync.WaitGroup
	again := func(commands ...[]string) {
		work.Go(func() {
			for {
				for _, c := range commands {
					select {
					case <-stop:
						return
					default:
					}
					if r := m.Try(c...); r.Code != 0 {
						t.Errorf("gantry %s: exit %d %s", strings.Join(c, " "), r.Code, r.Err)
					}
				}
			}
		})
	}
	again([]string{"run", "--rm", image, "true"})
	again([]string{"run", "-d", "--name", "web", "-p", "8080:80", image, "sleep", "1000"}, []string{"rm", "-f", "web"})
	again([]string{"create", "--name", "made", "-v", "data:/data", image}, []string{"rm", "made"}, []string{"volume", "rm", "data"})
	again([]string{"pull", "-q", other}, []string{"rmi", other})
	for range 40 {
		if r := m.Try("system", "check"); r.Code != 0 {
			t.Errorf("exit %d %s", r.Code, r.All())
		}
	}
	close(stop)
	work.Wait()
}

// TestCheckFindsLostBlobs: a blob that went is named, and comes back with a pull: nothing but the registry has it.
func TestCheckFindsLostBlobs(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "--name", "c", image, "true")
	id := m.Must("inspect", "-f", "{{.Id}}", "c")
	config := m.Must("image", "inspect", "-f", "{{.ID}}", image)
	if err := os.Remove(filepath.Join(m.Root, "content/blobs", strings.Replace(config, ":", "/", 1))); err != nil {
		t.Fatal(err)
	}
	if r := m.Try("system", "check", "--repair"); r.Code != 1 || !strings.Contains(r.Out, config) || !strings.Contains(r.Out, "pull it again") {
		t.Errorf("a blob that went: exit %d\n%s", r.Code, r.All())
	}
	m.Must("pull", "-q", image)
	m.Must("system", "check")
	if out := m.Must("inspect", "-f", "{{.Id}}", "c"); out != id {
		t.Errorf("the container went with the repair: %q", out)
	}
}
