/* The work of a captured stream, in order; it is done whenever the graph is launched. */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int kernel; void *to; const void *from; int value; size_t bytes; } Node;  /* a kernel, a copy, or a fill */
typedef struct { Node *nodes; int count; } Graph;

static void graph_add(Graph *graph, Node node) {
    graph->nodes = realloc(graph->nodes, (graph->count + 1) * sizeof node);
    graph->nodes[graph->count++] = node;
}

static Graph *graph_copy(const Graph *graph) {
    Graph *made = calloc(1, sizeof *made);
    for (int i = 0; i < graph->count; ++i) graph_add(made, graph->nodes[i]);
    return made;
}

static void graph_free(Graph *graph) {
    free(graph->nodes);
    free(graph);
}
