package host

import (
	"strings"
	"time"

	"github.com/gantryd/gantry/internal/meta"
	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
)

// verb is a method in the words of its errors, with the time it may take.
type verb struct {
	word  string
	limit time.Duration
	since int // the version of the contract that brought it
}

// verbOf knows the methods of every family; what it does not know gets the longest time.
func (l Limits) verbOf(method string) verb {
	v := verb{limit: l.Prepare, since: 1}
	switch method {
	case driverv1.SnapshotterService_Stat_FullMethodName, driverv1.SnapshotterService_Mounts_FullMethodName,
		driverv1.PluginService_Info_FullMethodName:
		v.limit = l.Stat
	case driverv1.NetworkDriverService_Attach_FullMethodName, driverv1.NetworkDriverService_Detach_FullMethodName,
		driverv1.NetworkDriverService_Publish_FullMethodName, driverv1.NetworkDriverService_CheckNetwork_FullMethodName, driverv1.VolumeBackendService_Mount_FullMethodName,
		driverv1.VolumeBackendService_Unmount_FullMethodName:
		v.limit = l.Attach
	case driverv1.NetworkDriverService_ListEndpoints_FullMethodName, driverv1.VolumeBackendService_ListVolumes_FullMethodName:
		v.since = 2
	}
	v.word = words(method[strings.LastIndexByte(method, '/')+1:])
	return v
}

// words makes "create network" of "CreateNetwork".
func words(camel string) string {
	var b strings.Builder
	for i, r := range camel {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte(' ')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// nounOf says what a request is about, as its sender calls it.
func nounOf(request any) string {
	switch r := request.(type) {
	case interface{ GetEndpointId() string }:
		return meta.Short(r.GetEndpointId())
	case interface{ GetKey() string }:
		return r.GetKey()
	case interface{ GetNetwork() *driverv1.NetworkSpec }:
		return nameOr(r.GetNetwork().GetName(), r.GetNetwork().GetId())
	case interface{ GetVolume() *driverv1.VolumeSpec }:
		return nameOr(r.GetVolume().GetName(), r.GetVolume().GetId())
	}
	return ""
}

func nameOr(name, id string) string {
	if name != "" {
		return name
	}
	return meta.Short(id)
}
