package native

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// options is a mount's options, sorted by what takes them.
type options struct {
	set, clear     uint64 // attributes of this mount
	setAll         uint64 // and of what is mounted below it
	clearAll       uint64
	propagation    uint64
	propagationAll bool
	bind, rbind    bool
	copyUp         bool // a tmpfs begins with what it covers
	remount        bool // what is mounted there is changed
	mapped, mapAll bool // ids are mapped: of this mount, of those below it too
	ids            *idmap
	data           []string // for the filesystem
}

type attribute struct{ set, clear uint64 }

// attributes are the options of mount(8) that are the mount's own, as mount_setattr(2) says them.
var attributes = map[string]attribute{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE,
}

// superblock are options that fsconfig(2) takes as flags for every filesystem.
var superblock = map[string]string{
	"sync": "sync", "dirsync": "dirsync", "lazytime": "lazytime", "mand": "mand",
	"async": "", "nolazytime": "", "nomand": "", "noiversion": "", "defaults": "", "silent": "", "loud": "",
}

// parseOptions sorts options. Of two that contradict each other the later wins.
func parseOptions(list []string) (options, error) {
	var o options
	for _, word := range list {
		if a, ok := attributes[word]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
			continue
		}
		if rest, ok := strings.CutPrefix(word, "r"); ok {
			if a, ok := attributes[rest]; ok { // "rro", "rnosuid", …
				o.setAll, o.clearAll = o.setAll&^a.clear|a.set, o.clearAll&^a.set|a.clear
				continue
			}
			if p, ok := propagations[rest]; ok {
				o.propagation, o.propagationAll = p, true
				continue
			}
		}
		if p, ok := propagations[word]; ok {
			o.propagation, o.propagationAll = p, false
			continue
		}
		switch word {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.rbind = true, true
		case "idmap":
			o.mapped, o.mapAll = true, false
		case "ridmap":
			o.mapped, o.mapAll = true, true
		case "tmpcopyup":
			o.copyUp = true
		case "remount":
			o.remount = true
		case "iversion":
			return o, fmt.Errorf("option %q is not supported: filesystems that count versions do so by themselves: %w", word, errdefs.ErrNotImplemented)
		case "":
		default:
			if flag, ok := superblock[word]; !ok {
				o.data = append(o.data, word)
			} else if flag != "" {
				o.data = append(o.data, flag)
			}
		}
	}
	return o, nil
}

// attr is for mount_setattr(2). A change of the access times' policy must clear all of its bits.
func attr(set, clr uint64) *unix.MountAttr {
	const atime = unix.MOUNT_ATTR__ATIME
	if set&atime != 0 || clr&atime != 0 {
		clr |= atime
	}
	return &unix.MountAttr{Attr_set: set, Attr_clr: clr &^ (set &^ atime)}
}
