// Package volumes owns volumes. It is the only caller of volume backends.
//
// A volume has an id of its own, under which its backend holds it, and a name. Who uses it is written in its
// record, in the same transaction as the container that does; so a volume is removed by nobody's mistake, and
// a container that goes lets go of it.
//
//	volumes.go  the service          store.go   tables, keys, claims, and how they are undone
//	volume.go   the verbs            server.go  gRPC in, gRPC out
//	use.go      what containers do   check.go   what differs, and what is used
package volumes

import (
	"context"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
)

// Default is the backend of volumes for which none is named.
const Default = "local"

// Drivers finds volume backends.
type Drivers interface {
	// Volume returns the named backend, a volume.Counter too if it has the capability "usage". It does not wait for it.
	Volume(name string) (volume.Backend, error)
	// Info asks what a backend can do. It may start it.
	Info(ctx context.Context, family plugins.Family, name string) (plugins.Info, error)
}

// Service is the verbs.
type Service struct {
	db      *meta.DB
	drivers Drivers
	tables
}

// New returns a Service. It registers how its claims are undone: call it before db.Recover.
func New(db *meta.DB, d Drivers) *Service {
	s := &Service{db: db, drivers: d, tables: newTables()}
	db.OnUndo(kindVolume, s.undoVolume)
	db.OnUndo(kindName, undoName)
	db.OnUndo(kindUse, s.undoUse)
	db.OnUndo(kindMount, s.undoMount)
	return s
}
