package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func TestEvents(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, args := range [][]string{{"events"}, {"events", "--after", "7"}, {"events", "--after", "0"}, {"system", "events", "--since", "10m", "--until", "2026-01-02T03:00:00Z"}} {
		d.expect(t, 0, "", "", args...)
	}
	d.wasCalled(
		t, "watch after=0 start=false since=00:00:00 until=00:00:00", "watch after=7 start=false since=00:00:00 until=00:00:00",
		"watch after=0 start=true since=00:00:00 until=00:00:00", "watch after=0 start=false since=02:54:05 until=03:00:00",
	)
	d.expect(t, 2, "", `--since "soon": no time`, "events", "--since", "soon")
}

// TestPlatform: an image of the right name for another platform is not what was asked for.
func TestPlatform(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.images.platform = "linux/amd64"
	d.expect(t, 125, "", "get image hello: not found", "run", "--pull", "never", "--platform", "linux/arm64", "hello")
	d.wasCalled(t)
	d.expect(t, 0, id+"\n", `image "hello" is not here for linux/arm64 yet`, "create", "--platform", "linux/arm64", "hello")
	d.wasCalled(t, "pull hello platform=linux/arm64", "create hello")

	there := newDaemon(t)
	there.images.platform = "linux/arm64"
	there.expect(t, 0, id+"\n", "", "create", "--platform", "linux/arm64", "hello")
	there.wasCalled(t, "create hello")
}

// TestInspectImage: an image is known by all its names, whichever was asked for.
func TestInspectImage(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.expect(t, 0, "[app:1 registry.example/app:2] [registry.example/app@sha256:aa]\n", "", "image", "inspect", "-f", "{{.RepoTags}} {{.RepoDigests}}", "app:1")
}

// TestNetworks: several networks are joined, in docker's older word as well, and what has no effect is told.
func TestNetworks(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var got []string
	d.create = func(r *containersv1.CreateRequest) error {
		got = append(got, fmt.Sprint(r.GetSpec().GetNetworkMode()))
		for _, n := range r.GetSpec().GetNetworks() {
			got = append(got, n.GetNetwork())
		}
		return nil
	}
	for _, args := range [][]string{{"--net", "a"}, {"--network", "a", "--net", "b"}, {"--network=default"}, {"--network", "default", "--network", "a"}, {"--net=host"}} {
		if code := d.gantry(append(append([]string{"create"}, args...), "hello")...); code != 0 {
			t.Errorf("%v: exit %d: %s", args, code, d.err.String())
		}
	}
	const own, host = "NETWORK_MODE_UNSPECIFIED", "NETWORK_MODE_HOST"
	if want := []string{own, "a", own, "a", "b", own, own, "bridge", "a", host}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	d.warnings = []string{"Published ports are discarded"}
	d.expect(t, 0, strings.Repeat(id+"\n", 6), "WARNING: Published ports are discarded\n", "create", "--net", "host", "-p", "80:80", "hello")
}

// TestWarnings: what could only be done in part is told wherever a container is started.
func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"run", "hello"}, {"run", "-d", "hello"}, {"start", "web"}, {"start", "-a", "web"}, {"restart", "web"}} {
		d := newDaemon(t)
		d.lacks = []string{"a limit is lower than asked"}
		d.get = func(string) (*containersv1.Container, error) { return container(&containersv1.Spec{}), nil }
		if code := d.gantry(args...); code != 0 || d.err.String() != "WARNING: a limit is lower than asked\n" {
			t.Errorf("%v: exit %d: %s", args, code, d.err.String())
		}
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, args := range [][]string{
		{"stop", "web"},
		{"stop", "-t", "3", "web"},
		{"stop", "--timeout", "4", "-s", "SIGINT", "web"},
		{"stop", "--time=5", "--signal=HUP", "web"},
		{"restart", "--timeout", "6", "-s", "QUIT", "web"},
	} {
		if code := d.gantry(args...); code != 0 {
			t.Errorf("%v: exit %d: %s", args, code, d.err.String())
		}
	}
	d.wasCalled(
		t, "stop web signal= grace=0s", "stop web signal= grace=3s", "stop web signal=SIGINT grace=4s", "stop web signal=HUP grace=5s",
		"stop web signal=QUIT grace=6s", "start web",
	)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--version", "-v"} {
		newDaemon(t).expect(t, 0, "gantry version "+version+"\n", "", flag)
	}
}

// TestPlugins: a driver whose name only one family has needs no family.
func TestPlugins(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.expect(t, 0, "bridge\n", "", "plugin", "restart", "bridge")
	d.expect(t, 2, "bridge\n", "2 families have one; write FAMILY/NAME, as in snapshotter/local", "plugin", "restart", "local")
	d.expect(t, 3, "bridge\n", "there is none of that name", "plugin", "restart", "nope")
	d.expect(t, 0, "bridge\nvolume/local\n", "none of that name", "plugin", "restart", "volume/local")
	d.wasCalled(t, "restart network/bridge", "restart volume/local")
	in := newDaemon(t)
	in.expect(t, 0, "network\n", "", "plugin", "inspect", "-f", "{{.Family}}", "bridge")
}

// TestRunUsage: what run and exec cannot make sense of is a failure of gantry's, not of what ran.
func TestRunUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"run"}, {"run", "--nosuch", "x"}, {"exec", "web"}, {"exec"}, {"container", "run"}} {
		if d := newDaemon(t); d.gantry(args...) != 125 {
			t.Errorf("%v: %s", args, d.err.String())
		}
	}
}
