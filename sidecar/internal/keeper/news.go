package keeper

import (
	"context"
	"log/slog"
)

// news is what is to be logged once it is true for all who ask. There may be a hundred generations of a data key: those that fare
// alike share a line.
type news []newsLine

type newsLine struct {
	newsText
	generations []uint32
}

type newsText struct {
	level                          slog.Level
	what, dataKey, reason, message string
	// keyVersion is set where a line is about one generation.
	keyVersion int32
}

func (n *news) add(t newsText, generation uint32) {
	for i := len(*n) - 1; i >= 0 && (*n)[i].dataKey == t.dataKey; i-- {
		if line := &(*n)[i]; line.newsText == t {
			line.generations = append(line.generations, generation)
			return
		}
	}
	*n = append(*n, newsLine{t, []uint32{generation}})
}

// tell logs everything, once.
func (n *news) tell(ctx context.Context, log *slog.Logger) {
	for _, line := range *n {
		attrs := []slog.Attr{slog.String("dataKey", line.dataKey)}
		if line.keyVersion != 0 {
			attrs = append(attrs, slog.Any("generation", line.generations[0]), slog.Any("keyVersion", line.keyVersion))
		} else {
			attrs = append(attrs, slog.Any("generations", line.generations))
		}
		if line.reason != "" {
			attrs = append(attrs, slog.String("reason", line.reason), slog.String("message", line.message))
		}
		log.LogAttrs(ctx, line.level, line.what, attrs...)
	}
	*n = nil
}
