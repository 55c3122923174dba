package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/gantryd/gantry/internal/blob"
	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/netns"
	"github.com/gantryd/gantry/internal/registry"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/seccomp"
	"github.com/gantryd/gantry/internal/supervise"
	"github.com/gantryd/gantry/plugins/host"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	"github.com/gantryd/gantry/services/containers"
	"github.com/gantryd/gantry/services/events"
	"github.com/gantryd/gantry/services/images"
	"github.com/gantryd/gantry/services/networks"
	"github.com/gantryd/gantry/services/snapshots"
	"github.com/gantryd/gantry/services/system"
	"github.com/gantryd/gantry/services/volumes"
)

// maxMessage bounds one message from a client, in bytes.
const maxMessage = 16 << 20

// house is all the parts, joined. It is the only place where concrete types meet.
type house struct {
	config     *config
	db         *meta.DB
	host       *host.Host
	netns      *netns.Dir
	snapshots  *snapshots.Service
	images     *images.Service
	networks   *networks.Service
	volumes    *volumes.Service
	shims      *supervise.Supervisor
	containers *containers.Service
	collector  *gc.Collector
	server     *grpc.Server
	limits     atomic.Pointer[limitsConfig]             // renewed by SIGHUP
	registered atomic.Pointer[map[string]runtimeConfig] // likewise
}

// build makes every part and starts none.
func build(c *config) (h *house, err error) {
	h = &house{config: c, netns: netns.New(filepath.Join(c.State, "netns"))}
	h.limits.Store(&c.Limits)
	h.registered.Store(&c.Runtimes)
	if h.db, err = meta.Open(c.database()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.db.Close())
		}
	}()
	if h.host, err = newHost(c, h.db); err != nil {
		return nil, err
	}
	h.snapshots = snapshots.New(h.db, h.host, c.Snapshotter)
	h.networks = networks.New(h.db, h.host, networks.Options{
		Instance: c.instance(), Bridge: c.bridge(), Subnet: c.Network.Subnet, MTU: c.Network.MTU,
	})
	h.volumes = volumes.New(h.db, h.host)
	h.collector = gc.New(h.db)
	if h.images, err = h.newImages(); err != nil {
		return nil, err
	}
	if h.containers, err = h.newContainers(); err != nil {
		return nil, err
	}
	h.snapshots.Collect(h.collector)
	h.images.Collect(h.collector)
	h.collector.Root(func(tx *meta.Tx, mark func(gc.Ref)) error {
		h.containers.Mark(tx, func(kind, scope, key string) { mark(gc.Ref{Kind: kind, Scope: scope, Key: key}) })
		return nil
	})
	h.server = h.newServer()
	return h, nil
}

// newHost knows every built-in driver and what the configuration says of others.
func newHost(c *config, db *meta.DB) (*host.Host, error) {
	program, err := c.program(c.Programs.Plugin, "gantry-plugin")
	if err != nil {
		return nil, err
	}
	ours := map[string]map[string]any{
		"network/bridge": {"instance": c.instance(), "bridge": c.bridge()},
	}
	configs := map[host.ID]host.Config{}
	add := func(name string) error {
		id, err := host.ParseID(name)
		if err != nil {
			return err
		}
		options, err := c.pluginOptions(name, ours[name])
		if err != nil {
			return fmt.Errorf("options of plugin %s: %w", name, err)
		}
		configs[id] = host.Config{Path: c.Plugins[name].Path, SHA256: c.Plugins[name].SHA256, Options: options}
		return nil
	}
	for name := range ours {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	for name := range c.Plugins {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return host.New(host.Options{
		Root: c.Root, State: c.State, Version: version, Builtin: host.Builtins(program), Config: configs,
		Records: host.InStore(db), Limits: host.Limits{Calls: c.Limits.PluginCalls},
	})
}

// newImages joins what names mean, what they lead to, and who uses it.
func (h *house) newImages() (*images.Service, error) {
	c := h.config
	blobs, err := blob.Open(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, err
	}
	return images.New(images.Options{Snapshotter: c.Snapshotter, Downloads: c.Limits.Downloads}, images.Parts{
		DB: h.db, Blobs: blobs, Snapshots: h.snapshots, Collector: h.collector,
		Registry: registry.New(registry.Config{Hosts: c.registries(), UserAgent: "gantryd/" + version}),
		Users: func(tx *meta.Tx, id string) (out []images.User) {
			for _, c := range h.containers.Users(tx, id) { // asked only once everything is made
				out = append(out, images.User{ID: c.GetMeta().GetId(), Name: c.GetMeta().GetName(), Running: running(c)})
			}
			return out
		},
	})
}

func running(c *containersv1.Container) bool {
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_CREATED, containersv1.Phase_PHASE_EXITED:
		return false
	default:
		return true
	}
}

// registries is what the registry client is told of each.
func (c *config) registries() map[string]registry.Host {
	hosts := map[string]registry.Host{}
	for name, r := range c.Registries {
		hosts[name] = registry.Host{PlainHTTP: r.PlainHTTP}
	}
	return hosts
}

func (h *house) newContainers() (*containers.Service, error) {
	c := h.config
	shim, err := c.program(c.Programs.Shim, "gantry-shim")
	if err != nil {
		return nil, err
	}
	h.shims = supervise.New(supervise.Options{Binary: shim, Instance: c.instance(), Slots: c.Slots})
	filters := filepath.Join(c.Root, "seccomp")
	caps, err := capabilities()
	if err != nil {
		return nil, err
	}
	return containers.New(containers.Config{
		Root: c.Root, State: c.State, Instance: c.instance(), Version: version, Snapshotter: c.Snapshotter,
		LogLimits: h.logLimits, Runtimes: h.runtimes, Capabilities: caps, CDI: c.CDI,
		Seccomp:        func(_ context.Context, caps []string) (string, error) { return seccomp.File(filters, caps) },
		SeccompProfile: seccomp.DefaultProfile,
	}, containers.Parts{
		DB: h.db, Images: h.images, Networks: h.networks, Volumes: h.volumes, Snapshots: h.snapshots, Shims: h.shims, NetNS: h.netns,
	}), nil
}

// logLimits is what is kept of a container's output where its user does not say.
func (h *house) logLimits() (bytes int64, files uint32) {
	l := h.limits.Load()
	n, _ := (&config{Limits: *l}).logMaxBytes() // check has looked at it
	return n, uint32(l.LogMaxFiles)
}

// newServer registers every service.
func (h *house) newServer() *grpc.Server {
	s := grpc.NewServer(append(rpc.ServerOptions(rpc.Options{}), grpc.MaxRecvMsgSize(maxMessage))...)
	for _, r := range []interface{ Register(grpc.ServiceRegistrar) }{
		h.images, h.containers, h.snapshots, h.networks, h.volumes, events.New(h.db), h.newSystem(),
	} {
		r.Register(s)
	}
	return s
}

func (h *house) newSystem() *system.Service {
	c := h.config
	var checks []check.Check
	for _, s := range []interface{ Checks() []check.Check }{c, h.images, h.snapshots, h.containers, h.networks, h.volumes} {
		checks = append(checks, s.Checks()...)
	}
	return system.New(system.Config{
		Version: version, Root: c.Root, State: c.State, Instance: c.instance(), Snapshotter: c.Snapshotter, Warnings: warnings,
		Runtimes: h.runtimesInfo,
	}, system.Parts{
		DB: h.db, Plugins: h.host, Checks: checks,
		Usages: []system.Usage{h.images.Usage, h.snapshots.Usages, h.containers.Usage, h.volumes.Usage},
	})
}

// program finds one of our other programs: where the configuration says, else beside this one.
func (c *config) program(configured, name string) (string, error) {
	path := configured
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		path = filepath.Join(filepath.Dir(self), name)
	}
	if st, err := os.Stat(path); err != nil || st.Mode()&0o111 == 0 {
		return "", fmt.Errorf("find %s: no program at %s; install it there, or say where it is in the configuration (programs)", name, path)
	}
	return path, nil
}
