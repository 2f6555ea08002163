/* One RDMA write with a tag at a time, from one device to another, both held by this process: post it, sleep on the
 * completion channel, take the completion. Prints the microseconds of each on a line of its own.
 * Arguments: sender's device and GID index, receiver's device and GID index, bytes of a write, number of writes. */
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct end {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    struct ibv_mr *mr;
    struct ibv_port_attr port;
    union ibv_gid gid;
    int gid_index;
};

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "%s failed\n", what);
        exit(1);
    }
}

static void open_end(struct end *end, const char *name, int gid_index, size_t bytes) {
    int count;
    struct ibv_device **devices = ibv_get_device_list(&count);
    check(devices != NULL, "ibv_get_device_list");
    for (int i = 0; i < count; i++)
        if (!strcmp(ibv_get_device_name(devices[i]), name)) end->context = ibv_open_device(devices[i]);
    check(end->context != NULL, "ibv_open_device");
    end->gid_index = gid_index;
    check(!ibv_query_port(end->context, 1, &end->port), "ibv_query_port");
    check(!ibv_query_gid(end->context, 1, gid_index, &end->gid), "ibv_query_gid");
    check((end->pd = ibv_alloc_pd(end->context)) != NULL, "ibv_alloc_pd");
    check((end->channel = ibv_create_comp_channel(end->context)) != NULL, "ibv_create_comp_channel");
    check((end->cq = ibv_create_cq(end->context, 256, NULL, end->channel, 0)) != NULL, "ibv_create_cq");
    char *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    check(memory != NULL, "aligned_alloc");
    memset(memory, 1, bytes);
    end->mr = ibv_reg_mr(end->pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    check(end->mr != NULL, "ibv_reg_mr");
    struct ibv_qp_init_attr init = {.send_cq = end->cq, .recv_cq = end->cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1}};
    check((end->qp = ibv_create_qp(end->pd, &init)) != NULL, "ibv_create_qp");
}

static void connect_end(struct end *end, struct end *peer) {
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    check(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), "INIT");
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = end->port.active_mtu, .dest_qp_num = peer->qp->qp_num,
                                .max_dest_rd_atomic = 1, .min_rnr_timer = 12};
    attr.ah_attr = (struct ibv_ah_attr){.is_global = 1, .port_num = 1, .dlid = peer->port.lid};
    attr.ah_attr.grh = (struct ibv_global_route){.dgid = peer->gid, .sgid_index = end->gid_index, .hop_limit = 64};
    check(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                         IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER), "RTR");
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 6, .rnr_retry = 6, .max_rd_atomic = 1};
    check(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                         IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC), "RTS");
}

static void post_receive(struct end *end) {
    struct ibv_recv_wr request = {0}, *bad;
    check(!ibv_post_recv(end->qp, &request, &bad), "ibv_post_recv");
}

static double now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

int main(int argc, char **argv) {
    check(argc == 7, "reading six arguments");
    size_t bytes = strtoul(argv[5], NULL, 10);
    int writes = atoi(argv[6]);
    struct end sender = {0}, receiver = {0};
    open_end(&sender, argv[1], atoi(argv[2]), bytes);
    open_end(&receiver, argv[3], atoi(argv[4]), bytes);
    connect_end(&receiver, &sender);
    connect_end(&sender, &receiver);
    check(!ibv_req_notify_cq(sender.cq, 0), "ibv_req_notify_cq");
    for (int i = 0; i < writes; i++) {
        post_receive(&receiver);
        struct ibv_sge piece = {(uintptr_t)sender.mr->addr, bytes, sender.mr->lkey};
        struct ibv_send_wr request = {.sg_list = &piece, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
                                      .send_flags = IBV_SEND_SIGNALED}, *bad;
        request.wr.rdma.remote_addr = (uintptr_t)receiver.mr->addr;
        request.wr.rdma.rkey = receiver.mr->rkey;
        struct ibv_wc completion;
        struct ibv_cq *cq;
        void *context;
        double began = now_us();
        check(!ibv_post_send(sender.qp, &request, &bad), "ibv_post_send");
        check(!ibv_get_cq_event(sender.channel, &cq, &context), "ibv_get_cq_event");
        ibv_ack_cq_events(cq, 1);
        check(!ibv_req_notify_cq(cq, 0), "ibv_req_notify_cq");
        check(ibv_poll_cq(cq, 1, &completion) == 1 && completion.status == IBV_WC_SUCCESS, "the write");
        printf("%.1f\n", now_us() - began);
        while (ibv_poll_cq(receiver.cq, 1, &completion) == 0) {}
    }
    return 0;
}
