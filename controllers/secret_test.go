package controllers

import (
	"strings"
	"testing"
)

func TestDecide(t *testing.T) {
	for name, tc := range map[string]struct {
		status, secret blobState
		want           action
	}{
		"nothing anywhere: make a data key":                        {blobAbsent, blobAbsent, actionCreate},
		"no status and a Secret that opens: adopt it":              {blobAbsent, blobOpens, actionAdopt},
		"no status and a Secret that does not open: leave it":      {blobAbsent, blobRefused, actionConflict},
		"no status and a Secret of another type: leave it":         {blobAbsent, blobForeign, actionConflict},
		"a status that opens and no Secret: write it again":        {blobOpens, blobAbsent, actionRecreate},
		"a status that opens and a Secret that opens: status wins": {blobOpens, blobOpens, actionKeep},
		"a status that opens and a spoilt Secret: repair it":       {blobOpens, blobRefused, actionKeep},
		"a status that opens and a foreign Secret: leave it":       {blobOpens, blobForeign, actionConflict},
		"another master key and no Secret: touch nothing":          {blobOfOtherKey, blobAbsent, actionChanged},
		"another master key and a Secret that opens":               {blobOfOtherKey, blobOpens, actionChanged},
		"another master key and a Secret that does not open":       {blobOfOtherKey, blobRefused, actionChanged},
		"another master key and a foreign Secret":                  {blobOfOtherKey, blobForeign, actionChanged},
		"a spoilt status and no Secret: never a new data key":      {blobRefused, blobAbsent, actionBroken},
		"a spoilt status and a Secret that opens: adopt it":        {blobRefused, blobOpens, actionAdopt},
		"a spoilt status and a spoilt Secret":                      {blobRefused, blobRefused, actionBroken},
		"a spoilt status and a foreign Secret":                     {blobRefused, blobForeign, actionBroken},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decide(tc.status, tc.secret); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"a short message stays":              {"short", "short"},
		"a message of the limit stays":       {strings.Repeat("a", maxMessage), strings.Repeat("a", maxMessage)},
		"a long message ends at a character": {strings.Repeat("é", maxMessage), strings.Repeat("é", (maxMessage-3)/2) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			if got := truncate(tc.in); got != tc.want {
				t.Errorf("got %d bytes, want %d", len(got), len(tc.want))
			}
		})
	}
}
