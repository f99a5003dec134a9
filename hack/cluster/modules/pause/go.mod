module github.com/datakeys/datakeys/hack/cluster/modules/pause

go 1.26.0
